//! Streams between kubectl and a container: WebSocket channels, SPDY/3.1, and SPDY tunnelled in WebSocket.
