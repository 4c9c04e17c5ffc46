//! Where the host leads connections on to somebody else: the kernel's choice is not delivery.

use anyhow::ensure;
use tests::{Answers, Request, Server, Trial, eventually};

/// As `docker -p` and kube-proxy do it.
const DNAT: &str = "
table ip led {
    chain in {
        type nat hook prerouting priority dstnat
        iif eth0 tcp dport 8000 dnat to 10.2.0.8:8000
    }
}
";

/// As a mesh's sidecar does it.
const REDIRECT: &str = "
table ip led {
    chain in {
        type nat hook prerouting priority dstnat
        iif eth0 tcp dport 8000 redirect to :9000
    }
}
";

fn who(_: usize, _: usize) -> Request {
    Request::post("/label", b"who is there")
}

/// Stable is in a pod, and has no listener on this host; nobody may take that for its end.
#[test]
fn a_stable_that_is_dialled_by_dnat_keeps_all_connections() {
    let Some(mut trial) = Trial::quiet(|_| {}) else {
        return;
    };
    trial.stop_stable();
    let pod = trial.scene.net.pod().unwrap();
    let listen = "0.0.0.0:8000".parse().unwrap();
    let stable = Server::start(&pod, listen, &Answers::of("v12")).unwrap();
    trial.scene.net.node.nft(DNAT).unwrap();
    trial.start_daemon();
    let set = trial.command(&["set", "0.5"]);
    let client = trial.scene.client_of("10.0.0.5:8000");
    let sent = client.load(40, 2, who).unwrap();
    assert_eq!(stable.received().len(), sent.len());
    assert_eq!(trial.connections(), [40, 0], "{set}");
    assert!(trial.steered("stable", "out_of_reach") > 5);
    let status = trial.scene.modelmirror(&["status"]);
    assert!(status.contains("nobody was seen to listen"), "{status}");
}

/// A server at the service's own address, which nobody reaches: what is given to the canary is the
/// sidecar's.
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
    let sent = client.load(40, 2, who).unwrap();
    assert_eq!(sidecar.received().len(), sent.len(), "it answers all");
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
