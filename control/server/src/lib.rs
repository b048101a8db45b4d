//! The API server: authentication, admission, the generic verbs, watch.
