//! Where the host leads connections on to somebody else: the kernel's choice is not delivery.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::ensure;
use tests::{Answers, Client, Request, Server, Trial, eventually};

/// As `docker -p` and kube-proxy do it, by a rule whose last word (a mark) nobody can tell from outside.
const DNAT: &str = "
table ip led {
    chain in {
        type nat hook prerouting priority dstnat
        iif eth0 tcp dport 8000 meta mark 0 dnat to 10.2.0.8:8000
    }
}
";

/// As a mesh's sidecar does it.
const REDIRECT: &str = "
table ip led {
    chain in {
        type nat hook prerouting priority dstnat
        iif eth0 tcp dport 8000 meta mark 0 redirect to :9000
    }
}
";

fn who(_: usize, _: usize) -> Request {
    Request::post("/label", b"who is there")
}

/// Stable is in a pod, and has no listener on this host; nobody may take that for its end.
#[test]
fn a_stable_that_is_dialled_by_dnat_keeps_all_connections() {
    let Some(mut trial) = Trial::quiet(|canary| {
        canary.insert("share".into(), 0.5.into());
    }) else {
        return;
    };
    trial.stop_stable();
    let stable = stable_in_a_pod(&trial);
    trial.start_daemon();
    let client = trial.scene.client_of("10.0.0.5:8000");
    let sent = client.load(40, 2, who).unwrap();
    assert_eq!(stable.received().len(), sent.len());
    assert_eq!(trial.connections(), [40, 0]);
    assert!(trial.steered("stable", "out_of_reach") > 5);
    is_refused(&trial, "answered by somebody else");
    let status = trial.scene.modelmirror(&["status"]);
    assert!(status.contains("answered by somebody else"), "{status}");
}

/// The same, where nothing has passed yet that would have shown it.
#[test]
fn a_share_is_refused_where_nobody_listens() {
    let Some(mut trial) = Trial::quiet(|_| {}) else {
        return;
    };
    trial.stop_stable();
    trial.start_daemon();
    is_refused(&trial, "nobody was seen to listen");
    trial.restart_stable();
    trial.set("0.5");
}

/// docker-proxy listens where clients dial, and netfilter leads them past it, to the container: the
/// canary's connections go nowhere. Few are lost, and then the share goes back by itself.
#[test]
fn few_connections_are_lost_where_netfilter_leads_them_on() {
    let Some(trial) = Trial::new() else {
        return;
    };
    let _stable = stable_in_a_pod(&trial);
    trial.set("0.5");
    let mut lost = 0;
    eventually("the share goes back", || {
        lost += outcomes(&trial, 60)[1];
        let share = trial
            .scene
            .node_metrics()
            .sum("modelmirror_canary_share", &[]);
        ensure!(share == 0.0, "{share}");
        Ok(())
    });
    assert!((3..=17).contains(&lost), "{lost} are lost");
    assert_eq!(outcomes(&trial, 60), [60, 0]);
    let status = trial.scene.modelmirror(&["status"]);
    assert!(status.contains("share withdrawn"), "{status}");
    is_refused(&trial, "answered by somebody else");
}

/// Once stable's own connections were seen to go to somebody else, none of the canary's is tried.
#[test]
fn no_connection_is_lost_where_stable_s_were_seen_to_be_led_on() {
    let Some(trial) = Trial::new() else {
        return;
    };
    let _stable = stable_in_a_pod(&trial);
    assert_eq!(outcomes(&trial, 20), [20, 0]);
    is_refused(&trial, "answered by somebody else");
    assert_eq!(outcomes(&trial, 20), [20, 0]);
}

/// A server at the service's own address, which nobody reaches: what is given to the canary is the
/// sidecar's, and nobody notices but us.
#[test]
fn a_sidecar_that_takes_all_ends_a_canary() {
    let Some(trial) = Trial::new() else {
        return;
    };
    let node = &trial.scene.net.node;
    let listen = "0.0.0.0:9000".parse().unwrap();
    let sidecar = Server::start(node, listen, &Answers::of("v12")).unwrap();
    node.nft(REDIRECT).unwrap();
    trial.set("0.5");
    let client = trial.scene.client_of("10.0.0.5:8000");
    let sent = load_until_it_goes_back(&trial, &client, 1);
    assert_eq!(sidecar.received().len(), sent, "it answers all");
    let [_, canary] = trial.connections();
    assert!((3..=17).contains(&canary), "{canary} were the canary's");
    let status = trial.scene.modelmirror(&["status"]);
    assert!(status.contains("share withdrawn"), "{status}");
}

/// The same while it serves: ten of its last twenty, and its share goes back.
#[test]
fn connections_that_a_sidecar_takes_are_called_strayed() {
    let Some(trial) = Trial::new() else {
        return;
    };
    let node = &trial.scene.net.node;
    let listen = "0.0.0.0:9000".parse().unwrap();
    let sidecar = Server::start(node, listen, &Answers::of("v12")).unwrap();
    trial.set("0.5");
    let client = trial.scene.client_of("10.0.0.5:8000");
    let before = client
        .load(20, 1, |_, _| Request::post("/echo", b"before"))
        .unwrap();
    let split = trial.split(&before);
    let strayed = || {
        let metrics = trial.scene.daemon().metrics()?;
        anyhow::Ok(metrics.sum("modelmirror_strayed_connections_total", &[]) as u64)
    };
    assert_eq!(strayed().unwrap(), 0);
    node.nft(REDIRECT).unwrap();
    let sent = load_until_it_goes_back(&trial, &client, 2);
    assert_eq!(sidecar.received().len(), sent, "it answers all");
    let [_, canary] = trial.connections();
    eventually("they are counted", || {
        let strayed = strayed()?;
        let given = canary - split.connections[1];
        ensure!(strayed == given && given > 5, "{strayed} of {given}");
        Ok(())
    });
    let status = trial.scene.modelmirror(&["status"]);
    assert!(status.contains("STRAYED"), "{status}");
}

/// Sends until the canary's share is nothing any more; how many requests that took.
#[track_caller]
fn load_until_it_goes_back(trial: &Trial, client: &Client, each: usize) -> usize {
    let mut sent = 0;
    eventually("the share goes back", || {
        sent += client.load(40, each, who)?.len();
        let metrics = trial.scene.node_metrics();
        let share = metrics.sum("modelmirror_canary_share", &[]);
        ensure!(share == 0.0, "{share}");
        Ok(())
    });
    sent
}

/// Stable, in a pod to which the node leads what clients dial.
#[track_caller]
fn stable_in_a_pod(trial: &Trial) -> Server {
    let pod = trial.scene.net.pod().unwrap();
    let listen = "0.0.0.0:8000".parse().unwrap();
    let stable = Server::start(&pod, listen, &Answers::of("v12")).unwrap();
    trial.scene.net.node.nft(DNAT).unwrap();
    stable
}

#[track_caller]
fn is_refused(trial: &Trial, words: &str) {
    let line = ["canary", "set", "0.5", "--service", "digits"];
    let scene = &trial.scene;
    let refused = scene.home.modelmirror(&scene.net.node, &line);
    let said = format!("{:#}", refused.unwrap_err());
    assert!(said.contains(words), "{said}");
}

/// How many of so many connections, made at once, get an answer within two seconds, and how many do not.
fn outcomes(trial: &Trial, count: usize) -> [usize; 2] {
    const PATIENCE: Duration = Duration::from_secs(2);
    let ask = || {
        let server = "10.0.0.5:8000".parse().unwrap();
        let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /label HTTP/1.1\r\nhost: digits\r\nx-id: none\r\n\r\n")?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        io::Result::Ok(answer.starts_with(b"HTTP/1.1 200"))
    };
    let client = &trial.scene.net.client;
    let answered = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..count)
            .map(|_| scope.spawn(|| client.run(ask)))
            .collect();
        let answers = asked.into_iter().map(|asked| asked.join().unwrap());
        answers.filter(|answer| matches!(answer, Ok(true))).count()
    });
    [answered, count - answered]
}
