//! What node and agent both stand on: values of config files, the transport's two ends, sockets that people and
//! programs ask at, the processes behind a listening socket.

pub mod admin;
pub mod check;
pub mod config;
pub mod control;
pub mod guard;
pub mod http_client;
pub mod metrics;
pub mod private_file;
pub mod serve;
pub mod servers;
pub mod sock_diag;
pub mod transport;
