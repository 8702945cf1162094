//! Requests whose `:authority` is the path of a socket.
//!
//! gRPC clients on a Unix socket name it in `:authority`: those built on C-core (Python, C++, Ruby) percent-encoded,
//! Java raw. Neither is an authority (RFC 3986), and the HTTP/2 library resets such a stream, so that the client tries
//! again for ever. Nobody here reads an authority: the socket is the endpoint. So each one is replaced, before the
//! library sees it, by one that it takes.
//!
//! This needs no HPACK decoder, hence no table and nothing that a hostile block could make grow: a literal is replaced
//! where it stands, by a value no longer than it was. Both ends then hold the same entries in the same order, ours
//! some bytes smaller; since entries are numbered from the newest, and ours are dropped later if at all, every later
//! reference of the client's finds the entry that it means.
//!
//! An empty one, which HTTP/2 forbids (RFC 9113, 8.3.1) and no client library sends by itself, stays: what stood for it
//! would be longer than it is. The library resets such a stream, and the connection goes on.
//!
//! What is not well-formed is passed on as it came: the library judges, not this filter.

mod block;
mod frames;
mod stream;

pub use frames::Rewriter;
pub(super) use stream::Filtered;
