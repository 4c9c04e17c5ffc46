//! Services of Kubernetes, by the rules that kube-proxy writes (mode `nftables`).

use tests::{Namespace, Trial};

use super::pods::routed_pod;
use super::{
    canary_elsewhere, check_refuses, finds, mirrors_and_steers_away, mirrors_once, set_is_refused,
    steers_half,
};

/// What clients in the cluster dial.
const CLUSTER_IP: &str = "10.96.0.10:8000";

/// The service's one pod.
const POD: &str = "10.2.0.8:8000";

/// Every node has the same rules: for a ClusterIP, and for the node's own port of that number. Who comes in by
/// the latter is masqueraded, as is who comes from outside the cluster, 10.0.0.0/14.
const RULES: &str = "
table ip kube-proxy {
    map service-ips {
        type ipv4_addr . inet_proto . inet_service : verdict
        elements = { 10.96.0.10 . tcp . 8000 : goto service-digits }
    }
    map service-nodeports {
        type inet_proto . inet_service : verdict
        elements = { tcp . 8000 : goto external-digits }
    }
    chain mark-for-masquerade {
        meta mark set meta mark or 0x4000
    }
    chain masquerading {
        meta mark and 0x4000 == 0 return
        meta mark set meta mark xor 0x4000
        masquerade fully-random
    }
    chain endpoint-digits {
        ip saddr 10.2.0.8 jump mark-for-masquerade
        meta l4proto tcp dnat to 10.2.0.8:8000
    }
    chain service-digits {
        ip daddr 10.96.0.10 tcp dport 8000 ip saddr != 10.0.0.0/14 jump mark-for-masquerade
        numgen random mod 1 vmap { 0 : goto endpoint-digits }
    }
    chain external-digits {
        jump mark-for-masquerade
        goto service-digits
    }
    chain services {
        ip daddr . meta l4proto . th dport vmap @service-ips
        fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @service-nodeports
    }
    chain nat-prerouting {
        type nat hook prerouting priority dstnat
        jump services
    }
    chain nat-output {
        type nat hook output priority -100
        jump services
    }
    chain nat-postrouting {
        type nat hook postrouting priority srcnat
        jump masquerading
    }
}
";

/// A trial whose stable is in a pod, where `host` has kube-proxy's rules; dialled and tapped at `addresses`.
fn trial(host: impl Fn(&Trial) -> Namespace, address: &str) -> Option<Trial> {
    let mut trial = routed_pod()?;
    host(&trial).nft(RULES).unwrap();
    trial.scene.set_addresses(&[address]);
    Some(trial)
}

/// What comes from another node is translated there.
#[test]
fn a_cluster_ip_that_other_nodes_dial_is_the_pod_s_address_here() {
    for interfaces in [&["eth0"][..], &["eth0", "pod0"]] {
        let client = |trial: &Trial| trial.scene.net.client.clone();
        let Some(mut trial) = trial(client, POD) else {
            return;
        };
        trial.scene.set_interfaces(interfaces);
        mirrors_and_steers_away(&mut trial, CLUSTER_IP);
    }
}

/// A pod on this node dials the ClusterIP itself; it is tapped where the pod comes in.
#[test]
fn a_cluster_ip_that_this_node_translates_is_tapped_before_that() {
    let node = |trial: &Trial| trial.scene.net.node.clone();
    let Some(mut trial) = trial(node, CLUSTER_IP) else {
        return;
    };
    canary_elsewhere(&mut trial);
    trial.start_mirrored();
    mirrors_once(&trial.scene, CLUSTER_IP);
    trial.wait_for_canary(1.0);
    steers_half(&trial, CLUSTER_IP);
}

/// Or where the server's pod is, by its own address.
#[test]
fn a_cluster_ip_that_this_node_translates_is_mirrored_at_the_pod() {
    let node = |trial: &Trial| trial.scene.net.node.clone();
    let Some(mut trial) = trial(node, POD) else {
        return;
    };
    trial.scene.set_interfaces(&["pod0"]);
    canary_elsewhere(&mut trial);
    trial.start_mirrored();
    mirrors_once(&trial.scene, CLUSTER_IP);
    trial.wait_for_canary(1.0);
    set_is_refused(&trial, "only as they leave for the servers");
}

/// A NodePort, by which clients come in with the node's own address.
#[test]
fn a_node_port_is_tapped_at_the_nic() {
    let node = |trial: &Trial| trial.scene.net.node.clone();
    let Some(mut trial) = trial(node, "10.0.0.5:8000") else {
        return;
    };
    mirrors_and_steers_away(&mut trial, "10.0.0.5:8000");
}

#[test]
fn a_canary_of_this_host_is_refused_behind_kube_proxy() {
    let node = |trial: &Trial| trial.scene.net.node.clone();
    let Some(mut cluster_ip) = trial(node, CLUSTER_IP) else {
        return;
    };
    cluster_ip.start_daemon();
    let said = "10.96.0.10 is no address of this host";
    set_is_refused(&cluster_ip, said);
    check_refuses(&cluster_ip.scene, said);
    let Some(mut node_port) = trial(node, "10.0.0.5:8000") else {
        return;
    };
    node_port.start_daemon();
    set_is_refused(&node_port, "nobody was seen to listen at the service's own");
    let said = finds(&node_port.scene);
    assert!(
        said.contains("10.0.0.5:8000: nothing listens there"),
        "{said}"
    );
}
