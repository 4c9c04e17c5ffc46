//! Copies that are lost on the way to the agent: datagrams alone can be, a connection sends again.

use std::collections::HashSet;

use tests::{Exchange, Loss, Relay, Request, Scene, Transport, pattern};

/// Bodies from nothing to several segments, each another.
fn request(connection: usize, index: usize) -> Request {
    let length = [0, 1, 900, 1448, 5000, 20_000][index % 6];
    let body = pattern(length, (connection * 1000 + index) as u64);
    Request::post("/echo", &body)
}

#[track_caller]
fn load(scene: &Scene) -> Vec<Exchange> {
    scene.load(20, 12, request)
}

fn describe(exchange: &Exchange, touched: bool, replayed: bool) -> String {
    let (id, request, answer) = (&exchange.id, &exchange.request_span, &exchange.answer_span);
    format!("{id}: {request:?} answered {answer:?}, touched {touched}, replayed {replayed}\n")
}

/// Loses the copies for which `loses` says so, and knows which requests that must cost. Of datagrams
/// alone.
#[track_caller]
fn check(loses: impl Fn(u64) -> bool + Send + 'static) {
    if Transport::of_this_run() != Transport::Geneve {
        return;
    }
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let (listen, agent) = ("10.1.0.9:6181", "10.1.0.9:6182");
    scene.set_shadow("listen", agent);
    let (listen, agent) = (listen.parse().unwrap(), agent.parse().unwrap());
    let relay = Relay::start(&scene.net.shadow, listen, agent, loses).unwrap();
    scene.start();
    let sent = load(&scene);
    let outcome = scene.account(&sent);
    let loss = relay.loss();
    let (lost, copies) = (loss.lost, loss.copies);
    assert!(lost > 20, "only {lost} of {copies} were lost");
    // Of the first copies nobody knows, if they get lost, but that they were sent.
    let missing = outcome.copies("lost") + outcome.copies("partial") + outcome.earlier();
    assert_eq!(missing, lost, "{}", outcome.metrics);
    let visible = sent.iter().filter(|exchange| !loss.hides(exchange)).count();
    // What is left of two neighbours may look like one.
    let alike = sent
        .windows(2)
        .filter(|pair| pair[0].local == pair[1].local && pair.iter().all(|one| loss.touches(one)));
    let seen = (visible - alike.count()) as u64..=visible as u64;
    assert!(
        seen.contains(&outcome.seen()),
        "not {seen:?} seen\n{}",
        outcome.metrics
    );
    check_each(&scene, &loss, &sent);
}

/// What was touched is not compared; what was not is replayed, where its place was certain.
#[track_caller]
fn check_each(scene: &Scene, loss: &Loss, sent: &[Exchange]) {
    let shadowed = scene.shadowed();
    let replayed: HashSet<_> = shadowed.iter().map(|asked| asked.id()).collect();
    let records = scene.agent().records().unwrap();
    let ids = records.iter().map(|record| record["request_id"].as_str());
    let compared: HashSet<_> = ids.flatten().collect();
    let (mut touched, mut unsure) = (0, 0);
    let mut before: Option<(&Exchange, bool)> = None;
    for exchange in sent {
        let before_it = before.filter(|(other, _)| other.local == exchange.local);
        // What begins behind a lost end of a request, with all of its answer lost as well, may be
        // a part of that request's body.
        let is_unsure = before_it.is_some_and(|(other, unsure)| {
            (unsure || loss.touches_request(other)) && loss.hides_answer(other)
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
        assert!(
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
    assert!(touched > 10, "only {touched} requests were touched");
    assert!(unsure < touched, "{unsure} had no certain place");
}

#[test]
fn what_was_touched_is_counted_and_the_rest_replayed() {
    check(|number| number % 17 == 5);
}

#[test]
fn a_twentieth_without_a_pattern() {
    // Knuth's multiplicative hash: as good as random, and the same every time.
    check(|number| ((number as u32).wrapping_mul(2_654_435_761) >> 16) < 65_536 / 20);
}

/// On the wire itself, where whole super-packets get lost. What a connection carries is sent again.
#[test]
fn the_wire_loses_a_twentieth_at_random() {
    let Some(scene) = Scene::started() else {
        return;
    };
    let shadow = &scene.net.shadow;
    // Copies alone where they are datagrams, and else anything that the tap sends.
    let protocol = match Transport::of_this_run() {
        Transport::Geneve => "udp",
        Transport::Stream => "tcp",
    };
    shadow.nft(&rules(protocol)).unwrap();
    let sent = load(&scene);
    let outcome = scene.account(&sent);
    let lost = shadow.nft_counter("netdev", "loss", "lost").unwrap();
    assert!(lost > 0, "nothing was lost");
    if Transport::of_this_run() == Transport::Stream {
        return scene.complete(&sent, &[]);
    }
    // Of the first copies nobody knows, if they get lost, but that they were sent.
    let missing = outcome.copies("lost") + outcome.earlier();
    assert_eq!(missing, lost, "{}", outcome.metrics);
    let compared = outcome.requests("compared");
    assert!(
        (1..sent.len() as u64).contains(&compared),
        "{compared} compared\n{}",
        outcome.metrics
    );
}

/// One packet in twenty to the agent does not arrive.
fn rules(protocol: &str) -> String {
    format!(
        "
table netdev loss {{
    counter lost {{ }}
    chain door {{
        type filter hook ingress device eth0 priority 0
        {protocol} dport 6181 numgen random mod 100 < 5 counter name lost drop
    }}
}}
"
    )
}
