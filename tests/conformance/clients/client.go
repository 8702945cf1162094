// The Go client library (grpc-go) as a workload.
//
// usage: client SOCKET
//
// Says on standard output the first message of FetchX509SVID and that of
// FetchJWTSVID, in hexadecimal, a line each.
package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// raw passes messages as the bytes that they are.
type raw struct{}

func (raw) Marshal(message interface{}) ([]byte, error) { return *message.(*[]byte), nil }

func (raw) Unmarshal(data []byte, message interface{}) error {
	*message.(*[]byte) = append([]byte(nil), data...)
	return nil
}

func (raw) Name() string { return "proto" }

// first makes a call of one request, up to its first response.
func first(connection *grpc.ClientConn, method string, request []byte) []byte {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
	kind := &grpc.StreamDesc{ServerStreams: true}
	stream, err := connection.NewStream(ctx, kind, "/SpiffeWorkloadAPI/"+method, grpc.ForceCodec(raw{}))
	check(method, err)
	check(method, stream.SendMsg(&request))
	check(method, stream.CloseSend())
	var response []byte
	check(method, stream.RecvMsg(&response))
	return response
}

func check(what string, err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, what, err)
		os.Exit(1)
	}
}

func main() {
	connection, err := grpc.Dial("unix://"+os.Args[1], grpc.WithInsecure())
	check("dial", err)
	fmt.Println(hex.EncodeToString(first(connection, "FetchX509SVID", nil)))
	fmt.Println(hex.EncodeToString(first(connection, "FetchJWTSVID", []byte("\x0a\x02db"))))
}
