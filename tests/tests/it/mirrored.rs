//! The main job: what clients send reaches the shadow byte for byte, and is compared.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use tests::{
    Agent, Answers, Client, Daemon, Home, Request, Server, Topology, eventually, pattern,
    privileged,
};

#[test]
fn every_request_reaches_the_shadow_byte_for_byte() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let net = Topology::new()?;
    let home = Home::new()?;
    let answers = Answers::of("v12");
    let other = Answers {
        other_label_in: Some(5),
        ..Answers::of("v13")
    };
    let _production = Server::start(&net.node, "0.0.0.0:8000".parse()?, &answers)?;
    let shadow = Server::start(&net.shadow, "127.0.0.1:8000".parse()?, &other)?;
    let agent = Agent::start(&net.shadow, &home, &home.shadow_config())?;
    let daemon = Daemon::start(&net.node, &home, &home.node_config())?;
    daemon.wait_for_agent()?;

    let client = Client::new(&net.client, "10.0.0.5:8000".parse()?, &answers);
    let sent = client.load(5, 20, |connection, index| {
        let body = pattern(1 + connection * 7000 + index * 131, index as u64);
        Request::post("/label", &body)
    })?;

    eventually("all are compared and written", || {
        let written = agent.records()?.len();
        ensure!(
            written == sent.len(),
            "{written} written\n{}",
            agent.metrics()?
        );
        Ok(())
    });
    let received: HashMap<_, _> = shadow
        .received()
        .into_iter()
        .map(|received| (received.id().to_owned(), received))
        .collect();
    let records: HashMap<_, _> = agent
        .records()?
        .into_iter()
        .map(|record| {
            (
                record["request_id"].as_str().unwrap_or_default().to_owned(),
                record,
            )
        })
        .collect();
    assert_eq!((received.len(), records.len()), (sent.len(), sent.len()));
    for exchange in &sent {
        let (received, record) = (&received[&exchange.id], &records[&exchange.id]);
        assert_eq!(received.body_sha256, exchange.request_sha256);
        assert_eq!(received.header("x-modelmirror-shadow"), "1");
        assert_eq!(record["request"]["sha256"], exchange.request_sha256);
        assert_eq!(record["production"]["sha256"], exchange.body_sha256);
        let agree = answers.label(&exchange.request.body) == other.label(&exchange.request.body);
        assert_eq!(
            record["verdict"],
            if agree { "match" } else { "different" },
            "{record}"
        );
    }
    Ok(())
}
