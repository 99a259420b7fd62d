#!/bin/bash
# A demonstration on the cluster of the current kubeconfig, where the chart is installed: every claim is verified. It makes the namespace
# weft-demo, and deletes it at the end. IMAGE: an image with busybox (default: busybox); PULL: its imagePullPolicy (default: IfNotPresent).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
image=${IMAGE:-busybox} pull=${PULL:-IfNotPresent}
space=weft-demo failed=0 checked=0
k() { kubectl -n "$space" "$@"; }
front() { k exec deploy/front -c app -- "$@"; }

claim() { # TEXT COMMAND...: the command has to succeed within half a minute
	local text=$1 end=$((SECONDS + 30))
	shift
	checked=$((checked + 1))
	until "$@" >/dev/null 2>&1; do
		if [ $SECONDS -ge $end ]; then
			failed=$((failed + 1))
			echo "FAILED: $text"
			"$@" || true
			return 0
		fi
		sleep 0.5
	done
	echo "ok: $text"
}

echo "== 1. Pods get their sidecars"
sed -E "s#image: busybox(,?)#image: $image, imagePullPolicy: $pull\1#; s#^( +)image: (.*), imagePullPolicy: (.*)#\1image: \2\n\1imagePullPolicy: \3#" \
	"$here/shop.yaml" | kubectl apply -f - >/dev/null
for name in order-v1 order-v2 front outsider; do k rollout status "deploy/$name" --timeout=120s >/dev/null; done
k get pods
containers() { k get pods -l "app=$1" -o jsonpath='{.items[0].spec.containers[*].name} {.items[0].spec.initContainers[*].name}'; }
has_sidecar() { containers order | grep -q weft-proxy; }
has_none() { ! containers outsider | grep -q weft-proxy; }
claim "a pod of the labelled namespace has a proxy" has_sidecar
claim "a pod with the label sidecar.istio.io/inject=false has none" has_none

echo "== 2. A call by name, with mutual TLS"
front wget -q -O- http://order/cgi-bin/name || true
with_identity() { front wget -q -O- http://order/cgi-bin/name | grep -q "URI=spiffe://.*/ns/$space/sa/front"; }
claim "the server sees the client's identity" with_identity

echo "== 3. STRICT, subsets and weights"
kubectl apply -f "$here/policies.yaml"
accepted() { k get "$1" "$2" -o jsonpath='{.status.conditions[?(@.type=="weft.dev/Accepted")].status}' | grep -q "$3"; }
claim "the policies are accepted" accepted virtualservice order True
ip=$(k get pods -l app=order -o jsonpath='{.items[0].status.podIP}')
refused() { ! k exec deploy/outsider -- wget -q -O- "http://$ip:8080/cgi-bin/name"; }
claim "plaintext from outside the mesh is refused" refused
shares() {
	local all v2
	all=$(front sh -c 'for i in $(seq 100); do wget -q -O- http://order/cgi-bin/name; done')
	v2=$(grep -c '^order-v2' <<<"$all" || true)
	echo "   $v2 of $(wc -l <<<"$all") calls reached v2"
	[ "$v2" -ge 8 ] && [ "$v2" -le 36 ]
}
shares || true
claim "about a fifth of the calls reach v2" shares

echo "== 4. A broken policy is refused, and the last valid version serves"
broken() { k patch destinationrule order --type=merge -p '{"spec":{"trafficPolicy":{"connectionPool":{"http":{"http1MaxPendingRequsts":1}}}}}' 2>&1 || true; }
broken | sed 's/^/   | /'
still() { front wget -q -O- http://order/cgi-bin/name | grep -q '^order-'; }
names_field() { broken | grep -q 'did you mean `http1MaxPendingRequests`' || k get destinationrule order -o jsonpath='{.status.conditions}' | grep -q http1MaxPendingRequests; }
claim "the error names the field that was probably meant" names_field
claim "calls go on" still

echo "== 5. The path of a request, explained"
kubectl -n weft-system exec deploy/weft-control-plane -- weftctl route --from "front.$space" http://order/ | sed 's/^/   /'
explained() { kubectl -n weft-system exec deploy/weft-control-plane -- weftctl route --from "front.$space" http://order/ | grep -q "VirtualService/$space/order"; }
claim "the explanation names the VirtualService" explained

kubectl delete namespace "$space" --wait=false >/dev/null
echo
echo "$checked claims checked, $failed failed"
[ "$failed" = 0 ]
