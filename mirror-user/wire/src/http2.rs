//! HTTP/2 (RFC 9113) of both directions of a connection, read from copies of its bytes.

mod hpack;
