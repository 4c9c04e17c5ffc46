//! Every metric of both halves: name, help, labels, buckets.
