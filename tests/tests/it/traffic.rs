//! Requests that the tests have in common.

use tests::{Exchange, Request, Scene, pattern};

/// A small request that no other one equals.
pub(crate) fn small(connection: usize, index: usize) -> Request {
    Request::post("/echo", &pattern(700, (connection * 1000 + index) as u64))
}

/// Forty requests, one after another over each of four connections, which must all be compared.
#[track_caller]
pub(crate) fn mirrors(scene: &Scene, sent: &mut Vec<Exchange>) {
    let before = scene.settle().requests("compared");
    sent.extend(scene.load(4, 10, small));
    let compared = scene.account(sent).requests("compared") - before;
    assert_eq!(compared, 40, "of 40 were compared");
}

/// Ten requests that nobody copies, once [`Scene::count_copies`] counts.
#[track_caller]
pub(crate) fn is_not_mirrored(scene: &Scene, sent: &mut Vec<Exchange>) {
    let before = scene.copies();
    sent.extend(scene.load(2, 5, small));
    assert_eq!(scene.copies(), before, "copies");
    scene.serves(sent);
}

/// Small and large, in both directions: one segment, full segments, several super-packets.
pub(crate) fn mixed() -> Vec<Request> {
    let sizes = [0, 1448, 2_896, 65_536, 300_000];
    sizes.into_iter().flat_map(both_ways).collect()
}

/// `size` bytes there and back, back only, and there only.
pub(crate) fn both_ways(size: usize) -> [Request; 3] {
    let body = pattern(size, size as u64);
    [
        Request::post("/echo", &body),
        Request::get(&format!("/bytes/{size}")),
        Request::post("/label?pretty=1&seed=7", &body),
    ]
}

/// Sends the mixed traffic to each of these addresses at once.
#[track_caller]
pub(crate) fn send_mixed(scene: &Scene, servers: &[&str]) -> Vec<Exchange> {
    let requests = mixed();
    let sent = std::thread::scope(|scope| {
        let threads: Vec<_> = servers
            .iter()
            .map(|server| scope.spawn(|| scene.send(server, &requests)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("production answers"))
            .collect::<Vec<_>>()
    });
    sent.concat()
}

/// No byte was copied twice.
#[track_caller]
pub(crate) fn copied_once(scene: &Scene, sent: &[Exchange]) {
    let metrics = scene.node_metrics();
    let copied = metrics.sum("modelmirror_mirrored_bytes_total", &[]);
    let bodies: usize = sent
        .iter()
        .map(|exchange| exchange.request.body.len() + exchange.body_bytes)
        .sum();
    // Heads are small, and retransmissions rare on cables without loss.
    let most = bodies + bodies / 10 + sent.len() * 1_000;
    assert!(
        (bodies..most).contains(&(copied as usize)),
        "{copied} bytes copied of {bodies} in bodies"
    );
}
