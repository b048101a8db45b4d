//! Where probes are made: the seam that plugins plug into, and the native probes.
