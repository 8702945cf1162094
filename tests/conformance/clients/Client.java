// The Java client library (grpc-java over Netty) as a workload.
//
// usage: Client SOCKET
//
// Says on standard output the first message of FetchX509SVID and that of
// FetchJWTSVID, in hexadecimal, a line each.

import io.grpc.CallOptions;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.netty.NettyChannelBuilder;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import io.netty.buffer.ByteBuf;
import io.netty.channel.ChannelConfig;
import io.netty.channel.ChannelFuture;
import io.netty.channel.DefaultChannelConfig;
import io.netty.channel.FileRegion;
import io.netty.channel.nio.AbstractNioByteChannel;
import io.netty.channel.nio.NioEventLoopGroup;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.net.SocketAddress;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.channels.SocketChannel;
import java.util.concurrent.TimeUnit;

public final class Client {
    /**
     * Java's own Unix sockets, for a Netty without its native library. What gRPC sends as :authority is the address
     * as a text, the path, as it is for Netty's own kind of address.
     */
    public static final class UnixChannel extends AbstractNioByteChannel {
        private final ChannelConfig config = new DefaultChannelConfig(this);

        public UnixChannel() throws IOException {
            super(null, SocketChannel.open(StandardProtocolFamily.UNIX));
        }

        @Override
        protected SocketChannel javaChannel() {
            return (SocketChannel) super.javaChannel();
        }

        @Override
        public ChannelConfig config() {
            return config;
        }

        @Override
        public boolean isActive() {
            return javaChannel().isOpen() && javaChannel().isConnected();
        }

        @Override
        protected boolean doConnect(SocketAddress remote, SocketAddress local) throws Exception {
            return javaChannel().connect(remote);
        }

        @Override
        protected void doFinishConnect() throws Exception {
            javaChannel().finishConnect();
        }

        @Override
        protected int doReadBytes(ByteBuf buffer) throws Exception {
            return buffer.writeBytes(javaChannel(), buffer.writableBytes());
        }

        @Override
        protected int doWriteBytes(ByteBuf buffer) throws Exception {
            return buffer.readBytes(javaChannel(), buffer.readableBytes());
        }

        @Override
        protected long doWriteFileRegion(FileRegion region) {
            throw new UnsupportedOperationException();
        }

        @Override
        protected void doBind(SocketAddress local) {
            throw new UnsupportedOperationException();
        }

        @Override
        protected void doDisconnect() throws Exception {
            doClose();
        }

        @Override
        protected void doClose() throws Exception {
            super.doClose();
            javaChannel().close();
        }

        @Override
        protected ChannelFuture shutdownInput() {
            return newSucceededFuture();
        }

        @Override
        protected boolean isInputShutdown0() {
            return false;
        }

        @Override
        protected SocketAddress localAddress0() {
            return null;
        }

        @Override
        protected SocketAddress remoteAddress0() {
            try {
                return javaChannel().getRemoteAddress();
            } catch (IOException closed) {
                return null;
            }
        }
    }

    /** Messages as the bytes that they are. */
    private static final class Raw implements MethodDescriptor.Marshaller<byte[]> {
        @Override
        public InputStream stream(byte[] value) {
            return new ByteArrayInputStream(value);
        }

        @Override
        public byte[] parse(InputStream stream) {
            try {
                return stream.readAllBytes();
            } catch (IOException error) {
                throw new IllegalStateException(error);
            }
        }
    }

    /** A call of one request, up to its first response. */
    private static byte[] first(io.grpc.Channel channel, String method, byte[] request) {
        MethodDescriptor<byte[], byte[]> descriptor =
                MethodDescriptor.<byte[], byte[]>newBuilder(new Raw(), new Raw())
                        .setType(MethodDescriptor.MethodType.SERVER_STREAMING)
                        .setFullMethodName("SpiffeWorkloadAPI/" + method)
                        .build();
        CallOptions options = CallOptions.DEFAULT.withDeadlineAfter(10, TimeUnit.SECONDS);
        return ClientCalls.blockingServerStreamingCall(channel, descriptor, options, request).next();
    }

    private static void say(byte[] bytes) {
        StringBuilder text = new StringBuilder();
        for (byte one : bytes) {
            text.append(String.format("%02x", one));
        }
        System.out.println(text);
    }

    public static void main(String[] arguments) {
        ManagedChannel channel =
                NettyChannelBuilder.forAddress(UnixDomainSocketAddress.of(arguments[0]))
                        .eventLoopGroup(new NioEventLoopGroup(1))
                        .channelType(UnixChannel.class)
                        .usePlaintext()
                        .build();
        Metadata header = new Metadata();
        header.put(Metadata.Key.of("workload.spiffe.io", Metadata.ASCII_STRING_MARSHALLER), "true");
        io.grpc.Channel marked =
                io.grpc.ClientInterceptors.intercept(
                        channel, MetadataUtils.newAttachHeadersInterceptor(header));
        try {
            say(first(marked, "FetchX509SVID", new byte[0]));
            say(first(marked, "FetchJWTSVID", new byte[] {0x0a, 2, 'd', 'b'}));
            System.exit(0);
        } catch (Throwable problem) {
            // Netty's thread would go on.
            problem.printStackTrace();
            System.exit(1);
        }
    }
}
