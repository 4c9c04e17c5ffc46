//! Copies that are lost on the way to the agent.

use std::collections::HashSet;

use anyhow::{Result, ensure};
use tests::{Exchange, Loss, Relay, Request, Site, on, pattern, privileged};

/// Bodies from nothing to several segments, each another.
fn request(connection: usize, index: usize) -> Request {
    let length = [0, 1, 900, 1448, 5000, 20_000][index % 6];
    let body = pattern(length, (connection * 1000 + index) as u64);
    Request::post("/echo", &body)
}

fn load(site: &Site) -> Result<Vec<Exchange>> {
    site.client.load(20, 12, request)
}

fn describe(exchange: &Exchange, touched: bool, replayed: bool) -> String {
    let (id, request, answer) = (&exchange.id, &exchange.request_span, &exchange.answer_span);
    format!("{id}: {request:?} answered {answer:?}, touched {touched}, replayed {replayed}\n")
}

/// Loses the copies for which `loses` says so, and knows which requests that must cost.
fn check(loses: impl Fn(u64) -> bool + Send + 'static) {
    on(Site::quiet(), |site| {
        let mut config = site.home.shadow_config();
        config["listen"] = "10.1.0.9:6182".into();
        config["allow"] = vec!["10.1.0.9/32"].into();
        site.start_agent(&config)?;
        let (listen, agent) = ("10.1.0.9:6181".parse()?, "10.1.0.9:6182".parse()?);
        let relay = Relay::start(&site.net.shadow, listen, agent, loses)?;
        site.start_daemon(&site.node_config())?;
        site.wait_for_agent();
        let sent = load(site)?;
        let outcome = site.account(&sent)?;
        let loss = relay.loss();
        ensure!(
            loss.lost > 20,
            "only {} of {} were lost",
            loss.lost,
            loss.copies
        );
        ensure!(
            outcome.tunnel("lost") + outcome.tunnel("partial") == loss.lost,
            "{outcome:?}"
        );
        let visible = sent.iter().filter(|exchange| !loss.hides(exchange)).count();
        // What is left of two neighbours may look like one.
        let alike = sent.windows(2).filter(|pair| {
            pair[0].local == pair[1].local && pair.iter().all(|one| loss.touches(one))
        });
        let seen = (visible - alike.count()) as u64..=visible as u64;
        ensure!(
            seen.contains(&outcome.seen()),
            "not {seen:?} seen\n{}",
            outcome.metrics
        );
        check_each(site, &loss, &sent)
    });
}

/// What was touched is not compared; what was not is replayed, where its place was certain.
fn check_each(site: &Site, loss: &Loss, sent: &[Exchange]) -> Result<()> {
    let shadowed = site.shadowed();
    let replayed: HashSet<_> = shadowed.iter().map(|asked| asked.id()).collect();
    let records = site.records()?;
    let ids = records.iter().map(|record| record["request_id"].as_str());
    let compared: HashSet<_> = ids.flatten().collect();
    let (mut touched, mut unsure) = (0, 0);
    let mut before: Option<(&Exchange, bool)> = None;
    for exchange in sent {
        let before_it = before.filter(|(other, _)| other.local == exchange.local);
        // What begins behind a lost end of a request, with the end of its answer lost as well,
        // may be a part of that request's body.
        let is_unsure = before_it.is_some_and(|(other, unsure)| {
            (unsure || loss.touches_request(other)) && loss.touches_answer(other)
        });
        before = Some((exchange, is_unsure));
        let (is_touched, id) = (loss.touches(exchange), &*exchange.id);
        touched += usize::from(is_touched);
        unsure += usize::from(is_unsure);
        let right = match (is_touched, is_unsure) {
            (true, _) => !compared.contains(id),
            (false, true) => true,
            (false, false) => replayed.contains(id) && compared.contains(id),
        };
        ensure!(
            right,
            "touched {is_touched}, replayed {}, compared {}: {id}\n{}{}",
            replayed.contains(id),
            compared.contains(id),
            loss.of_connection(exchange),
            sent.iter()
                .filter(|other| other.local == exchange.local)
                .map(|other| describe(other, loss.touches(other), replayed.contains(&*other.id)))
                .collect::<String>()
        );
    }
    ensure!(touched > 10, "only {touched} requests were touched");
    ensure!(unsure < touched, "{unsure} had no certain place");
    Ok(())
}

#[test]
fn what_was_touched_is_counted_and_the_rest_replayed() {
    if !privileged() {
        return;
    }
    check(|number| number % 17 == 5);
}

#[test]
fn a_twentieth_without_a_pattern() {
    if !privileged() {
        return;
    }
    // Knuth's multiplicative hash: as good as random, and the same every time.
    check(|number| ((number as u32).wrapping_mul(2_654_435_761) >> 16) < 65_536 / 20);
}

/// On the wire itself, where whole super-packets get lost.
#[test]
fn the_wire_loses_a_twentieth_at_random() {
    if !privileged() {
        return;
    }
    on(Site::start(), |site| {
        site.net.shadow.nft(RULES)?;
        let sent = load(site)?;
        let outcome = site.account(&sent)?;
        let lost = site.net.shadow.nft_counter("netdev", "loss", "lost")?;
        ensure!(lost > 0, "nothing was lost");
        ensure!(
            outcome.tunnel("lost") == lost,
            "{lost} lost\n{}",
            outcome.metrics
        );
        ensure!(outcome.requests("compared") > 0, "{}", outcome.metrics);
        ensure!(
            outcome.requests("compared") < sent.len() as u64,
            "{}",
            outcome.metrics
        );
        Ok(())
    });
}

/// Copies, not control packets.
const RULES: &str = "
table netdev loss {
    counter lost { }
    chain door {
        type filter hook ingress device eth0 priority 0
        udp dport 6181 @th,72,1 0 numgen random mod 100 < 5 counter name lost drop
    }
}
";
