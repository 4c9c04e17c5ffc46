//! The daemon without an agent: production must not notice it.

use anyhow::Result;
use tests::{Answers, Client, Daemon, Home, Request, Server, Topology, eventually, privileged};

#[test]
fn production_is_served_without_an_agent() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let net = Topology::new()?;
    let home = Home::new()?;
    let answers = Answers::of("v12");
    let server = Server::start(&net.node, "0.0.0.0:8000".parse()?, &answers)?;
    let daemon = Daemon::start(&net.node, &home, &home.node_config())?;
    let client = Client::new(&net.client, "10.0.0.5:8000".parse()?, &answers);
    let sent = client.load(4, 25, |_, _| Request::post("/echo", &[7; 3000]))?;
    assert_eq!((sent.len(), server.received().len()), (100, 100));
    eventually("its packets are counted", || {
        let metrics = daemon.metrics()?;
        let packets = metrics.sum("modelmirror_packets_total", &[("service", "digits")]);
        anyhow::ensure!(packets >= 400.0, "{packets} packets\n{metrics}");
        Ok(())
    });
    Ok(())
}
