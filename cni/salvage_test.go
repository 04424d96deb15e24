package cni

import (
	"strings"
	"testing"

	"github.com/penstock-net/penstock/forwarder/control"
)

// TestDeleteOfWrongKind: a value of the wrong kind does not turn DEL to another daemon, or away from the ipam plugin.
func TestDeleteOfWrongKind(t *testing.T) {
	w := newWorld(t)
	for _, wrong := range []map[string]any{
		{"mtu": "1400"}, {"attach": 5}, {"routes": []any{map[string]any{"dst": "everywhere"}}}, {"capabilities": 1}, {"ipam": []any{}},
	} {
		p := w.newPod()
		w.mustAdd(p, "1.1.0", nil)
		conf := map[string]any{"name": "penstock", "socket": w.socket}
		for k, v := range wrong {
			conf[k] = v
		}
		a := w.run(call{verb: "DEL", id: p.id, netns: p.path, conf: conf})
		if a.code != 0 || !strings.Contains(a.stderr, "DEL goes on with the socket "+w.socket) {
			t.Errorf("%v: %d %s %q", wrong, a.code, a.msg, a.stderr)
		}
		w.clean(p)
	}
}

func TestSalvage(t *testing.T) {
	for _, test := range []struct{ stdin, socket, ipam string }{
		{`{"mtu":"x","socket":"/x/p.sock","ipam":{"type":"host-local"}}`, "/x/p.sock", "host-local"},
		{`{"routes":[{"dst":1}],"ipam":{"type":"host-local"},"socket":"/x/p.sock"}`, "/x/p.sock", "host-local"},
		{`{"socket":"p.sock"}`, control.DefaultSocket, ""},
		{`{"socket":5,"ipam":{"type":"host-local"}}`, control.DefaultSocket, "host-local"},
		{`{"mtu":"x","Socket":"/x/p.sock"}`, "/x/p.sock", ""},
		{`{"mtu":"x"}`, control.DefaultSocket, ""},
		{`null`, control.DefaultSocket, ""},
		{`[`, control.DefaultSocket, ""},
		{``, control.DefaultSocket, ""},
	} {
		var c netConf
		if c.salvage([]byte(test.stdin)); c.Socket != test.socket || c.delegated() != test.ipam {
			t.Errorf("%s: %q, %q", test.stdin, c.Socket, c.delegated())
		}
	}
}
