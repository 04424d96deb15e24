package cni

import (
	"errors"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// FuzzStdin: whatever a runtime writes to the plugin is a request that holds what its checks promise, or an error of the CNI
// specification with a code.
func FuzzStdin(f *testing.F) {
	for _, conf := range []string{
		`{"cniVersion":"1.0.0","name":"n","type":"penstock"}`,
		`{"cniVersion":"1.1.0","name":"n","type":"penstock","attach":"tun","mtu":1400,"socket":"/run/p.sock","runtimeConfig":{"ips":["10.244.1.7/24","fd00::7"],"mac":"02:00:00:00:00:07","bandwidth":{"ingressRate":1,"ingressBurst":2}}}`,
		`{"cniVersion":"0.4.0","name":"n","type":"penstock","ipam":{"type":"host-local"},"routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.1"}],"args":{"cni":{"ips":["10.244.1.9"]}}}`,
		`{"cniVersion":"1.0.0","name":"n","type":"penstock","prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/ns"}],"ips":[{"address":"10.244.1.3/24","interface":0}]}}`,
		`{"cniVersion":"1.1.0","name":"n","cni.dev/attachments":[{"containerID":"c","ifname":"eth0"}],"cni.dev/valid-attachments":[{"containerID":"c","ifname":"eth0"}]}`,
	} {
		f.Add([]byte(conf), "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p;IP=10.244.1.8")
	}
	f.Fuzz(func(t *testing.T, conf []byte, args string) {
		r, err := read(&skel.CmdArgs{ContainerID: "c", IfName: "eth0", Netns: "/ns", StdinData: conf, Args: args})
		if err != nil {
			if describe(t, err) == 0 {
				t.Fatalf("an error without a code: %v", err)
			}
			return
		}
		four, six := 0, 0
		for _, a := range r.requested {
			if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
				t.Fatalf("asks for %v", a)
			}
			if a.Is4() {
				four++
			} else {
				six++
			}
		}
		if four > 1 || six > 1 || r.mac != nil && (len(r.mac) != 6 || r.mac[0]&1 != 0) || r.mtu < 0 || r.conf.Socket == "" || r.conf.Socket[0] != '/' {
			t.Fatalf("understood as %+v", r)
		}
		switch r.attach {
		case "veth", "tun", "routed":
		default:
			t.Fatalf("attach %q", r.attach)
		}
	})
}

// describe is the code of an error that goes to the runtime.
func describe(t *testing.T, err error) uint {
	t.Helper()
	var e *types.Error
	if !errors.As(err, &e) || e.Msg == "" {
		return 0
	}
	return e.Code
}
