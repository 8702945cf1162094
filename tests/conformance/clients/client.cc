// The C++ client library (gRPC C-core) as a workload.
//
// usage: client SOCKET
//
// Says on standard output the first message of FetchX509SVID and that of
// FetchJWTSVID, in hexadecimal, a line each.

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <cstdio>
#include <string>

namespace {

// A call of one request, up to its first response.
std::string First(grpc::GenericStub& stub, const std::string& method, const std::string& request) {
  grpc::ClientContext context;
  context.AddMetadata("workload.spiffe.io", "true");
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  grpc::CompletionQueue queue;
  void* tag = nullptr;
  bool ok = false;
  auto call = stub.PrepareCall(&context, method, &queue);
  call->StartCall(&queue);
  queue.Next(&tag, &ok);
  grpc::Slice slice(request);
  grpc::ByteBuffer message(&slice, 1);
  call->WriteLast(message, grpc::WriteOptions(), &queue);
  queue.Next(&tag, &ok);
  grpc::ByteBuffer response;
  call->Read(&response, &queue);
  queue.Next(&tag, &ok);
  if (!ok) {
    grpc::Status status;
    call->Finish(&status, &queue);
    queue.Next(&tag, &ok);
    std::fprintf(stderr, "%s: %d %s\n", method.c_str(), status.error_code(), status.error_message().c_str());
    std::exit(1);
  }
  context.TryCancel();
  std::vector<grpc::Slice> slices;
  response.Dump(&slices);
  std::string bytes;
  for (const auto& part : slices) {
    bytes.append(reinterpret_cast<const char*>(part.begin()), part.size());
  }
  grpc::Status status;
  call->Finish(&status, &queue);
  queue.Next(&tag, &ok);
  return bytes;
}

void Say(const std::string& bytes) {
  for (unsigned char byte : bytes) {
    std::printf("%02x", byte);
  }
  std::printf("\n");
}

}  // namespace

int main(int, char** arguments) {
  auto channel = grpc::CreateChannel(std::string("unix://") + arguments[1], grpc::InsecureChannelCredentials());
  grpc::GenericStub stub(channel);
  Say(First(stub, "/SpiffeWorkloadAPI/FetchX509SVID", ""));
  Say(First(stub, "/SpiffeWorkloadAPI/FetchJWTSVID", "\x0a\x02" "db"));
}
