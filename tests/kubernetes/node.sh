#!/bin/bash
# A whole Kubernetes of one node (kube.sh's control plane, scheduler, containerd, kubelet) in network, mount and process namespaces of its own:
# the machine outside keeps its interfaces, firewall and mounts.
#
#   node.sh start DIR [IMAGE.tar ...]   imports docker archives (buildah push IMAGE docker-archive:FILE:NAME), waits until the node is Ready
#   node.sh exec DIR COMMAND ...        runs a command in those namespaces, KUBECONFIG set (absolute paths)
#   node.sh stop DIR                    ends one process, and with it all that runs inside
#
# Needs root, cgroup v1 (or a hybrid), overlayfs, veth. Pods: 10.244.0.0/24 by the bridge plugin, node and apiserver 10.99.0.1. kube-proxy
# serves cluster IPs. The cluster's DNS is dnsmasq with the names of DNS_NAMES ("NAME=ADDRESS ..."). Images are local: imagePullPolicy
# Never.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# Folders that containerd, the network plugins and kubelet write to wherever their own state is.
shared=(/run/netns /run/containerd /var/lib/cni /var/lib/kubelet /var/log/pods /var/log/containers)
command=${1:?start, exec or stop}; D=${2:?a folder}; shift 2
mkdir -p "$D"; D=$(cd "$D" && pwd)
export KUBE_CACHE=${KUBE_CACHE:-/var/cache/weft-kube} KUBE_ADDRESS=10.99.0.1
CTR="ctr -a $D/run/containerd.sock -n k8s.io"

case $command in
start)
    for p in containerd runc containernetworking-plugins iproute2 iptables gcc dnsmasq-base conntrack; do dpkg-query -W -f '${Status}' $p 2>/dev/null | grep -q 'ok installed' || missing+=" $p"; done
    # shellcheck disable=SC2086
    [ -z "${missing:-}" ] || DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing >/dev/null
    "$here/kube.sh" build kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy
    setsid unshare -n -m -p --fork --mount-proc --propagation private --kill-child "$0" inside "$D" "$@" >"$D/node.log" 2>&1 </dev/null &
    outer=$!
    for _ in $(seq 600); do
        [ ! -e "$D/ready" ] || break
        kill -0 $outer 2>/dev/null || { tail -5 "$D/node.log" >&2; exit 1; }
        sleep 0.1
    done
    pgrep -P $outer >"$D/inner"; echo $outer >"$D/outer"
    echo "KUBECONFIG=$D/admin.kubeconfig"
    ;;
exec) KUBECONFIG=$D/admin.kubeconfig exec nsenter -t "$(cat "$D/inner")" -n -m -p "$@" ;;
stop)
    kill -9 "$(cat "$D/outer")" 2>/dev/null || true
    while kill -0 "$(cat "$D/inner")" 2>/dev/null; do sleep 0.1; done
    rm -f "$D/ready" "$D/inner" "$D/outer" "$D"/*.pid
    # The folders that this cluster has made on the machine; they are empty.
    [ ! -e "$D/made" ] || xargs -r rmdir --ignore-fail-on-non-empty <"$D/made"
    find /sys/fs/cgroup -depth -type d -path '*/kubepods*' -exec rmdir {} + 2>/dev/null || true
    ;;
inside)
    rm -f "$D/ready"
    for dir in "${shared[@]}"; do
        [ -d "$dir" ] || echo "$dir" >>"$D/made"
        mkdir -p "$dir" "$D/machine$dir"
        mount --bind "$D/machine$dir" "$dir"
    done
    ip link set lo up; ip link add d0 type veth peer name d1; ip addr add 10.99.0.1/24 dev d0; ip link set d0 up; ip link set d1 up; ip route add default dev d0
    sysctl -qw net.ipv4.ip_forward=1
    [ ! -d /sys/fs/cgroup/unified ] || umount /sys/fs/cgroup/unified || true # runtimes take a hybrid for one or the other
    mkdir -p "$D"/{cni,containerd,run,kubelet,manifests}
    cat >"$D/cni/10-pods.conflist" <<E
{"cniVersion":"0.4.0","name":"pods","plugins":[{"type":"bridge","bridge":"cni0","isGateway":true,"hairpinMode":true,"ipam":{"type":"host-local",
 "ranges":[[{"subnet":"10.244.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}],"dataDir":"$D/ipam"}},{"type":"loopback"}]}
E
    cat >"$D/containerd.toml" <<E
version = 2
root = "$D/containerd"
state = "$D/run/containerd"
[grpc]
  address = "$D/run/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true # root here has no CAP_SYS_RESOURCE
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$D/cni"
E
    cat >"$D/kubelet.yaml" <<E
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $D/ca.crt}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
failSwapOn: false
oomScoreAdj: 0
enforceNodeAllocatable: []
resolvConf: ""
clusterDNS: [10.99.0.1]
clusterDomain: cluster.local
staticPodPath: $D/manifests
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%}
nodeStatusUpdateFrequency: 4s
featureGates: {BoundServiceAccountTokenVolume: true}
E
    "$here/kube.sh" start "$D"
    containerd -c "$D/containerd.toml" >"$D/containerd.log" 2>&1 &
    if [ ! -f "$D/pause.tar" ]; then # the one image that the kubelet itself wants
        mkdir -p "$D/pause/layer"
        gcc -O2 -static -s -x c -o "$D/pause/layer/pause" - <<'C'
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int s) { (void)s; _exit(0); }
static void reap(int s) { (void)s; while (waitpid(-1, 0, WNOHANG) > 0); }
int main(void) {
    signal(SIGINT, end); signal(SIGTERM, end); signal(SIGCHLD, reap);
    for (;;) pause();
}
C
        tar -C "$D/pause/layer" --owner 0 --group 0 -cf "$D/pause/layer.tar" pause
        sum=$(sha256sum <"$D/pause/layer.tar" | cut -d' ' -f1)
        echo "{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{\"Entrypoint\":[\"/pause\"]},\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"sha256:$sum\"]}}" >"$D/pause/config.json"
        echo '[{"Config":"config.json","RepoTags":["localhost/pause:1"],"Layers":["layer.tar"]}]' >"$D/pause/manifest.json"
        tar -C "$D/pause" -cf "$D/pause.tar" manifest.json config.json layer.tar
    fi
    for _ in $(seq 100); do $CTR version >/dev/null 2>&1 && break; sleep 0.1; done
    for image in "$D/pause.tar" "$@"; do $CTR images import "$image"; done
    "$KUBE_CACHE/bin/kube-scheduler" --kubeconfig "$D/scheduler.kubeconfig" --leader-elect=false --port 0 --secure-port 10259 --bind-address 127.0.0.1 >"$D/scheduler.log" 2>&1 &
    "$KUBE_CACHE/bin/kubelet" --config "$D/kubelet.yaml" --kubeconfig "$D/node.kubeconfig" --container-runtime remote --container-runtime-endpoint "unix://$D/run/containerd.sock" \
        --root-dir "$D/kubelet" --node-ip 10.99.0.1 --cert-dir "$D/kubelet/pki" >"$D/kubelet.log" 2>&1 &
    cat >"$D/proxy.yaml" <<E
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $D/admin.kubeconfig}
mode: iptables
clusterCIDR: 10.244.0.0/16
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
E
    # The API server of the script does not keep the endpoints of its own Service.
    KUBECONFIG=$D/admin.kubeconfig kubectl apply -f - >/dev/null <<E
{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
 "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
 "endpoints": [{"addresses": ["10.99.0.1"]}], "ports": [{"name": "https", "port": ${KUBE_PORT:-16443}, "protocol": "TCP"}]}
E
    "$KUBE_CACHE/bin/kube-proxy" --config "$D/proxy.yaml" >"$D/proxy.log" 2>&1 &
    names=()
    for pair in ${DNS_NAMES:-}; do names+=(--address "/${pair%%=*}/${pair#*=}"); done
    dnsmasq --keep-in-foreground --no-resolv --no-hosts --listen-address 10.99.0.1 --bind-interfaces --user=root --pid-file="$D/dnsmasq.pid" \
        --local /cluster.local/ "${names[@]}" >"$D/dnsmasq.log" 2>&1 &
    node=$(hostname | tr A-Z a-z)
    for _ in $(seq 300); do
        curl -sf --cacert "$D/ca.crt" --cert "$D/admin.crt" --key "$D/admin.key" "https://10.99.0.1:${KUBE_PORT:-16443}/api/v1/nodes/$node" | grep -A1 '"reason": "KubeletReady"' >/dev/null && break
        sleep 0.1
    done
    touch "$D/ready"
    wait
    ;;
esac
