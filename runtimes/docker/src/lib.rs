//! The Docker runtime: pods as containers of an engine, over its socket.
