package forwarder

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// TestStartFails: whatever cannot be opened, New says so and leaves no descriptor open.
func TestStartFails(t *testing.T) {
	broken := errors.New("it does not open")
	descriptors := func() int {
		all, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	for _, what := range []string{"openHost", "openUDP", "the second openUDP", "openIPIP"} {
		t.Run(what, func(t *testing.T) {
			sockets := 0
			kind := encap.KindVXLAN
			if what == "openIPIP" {
				kind = encap.KindIPIP
			}
			env := environment{
				probe: func() []ring.Capability { return nil },
				openUDP: func(c ring.UDPConfig) (ring.Socket, error) {
					if sockets++; what == "openUDP" || what == "the second openUDP" && sockets == 2 {
						return nil, broken
					}
					return ring.NewFakeSocket(c.Local), nil
				},
				openIPIP: func(c ring.RawConfig) (ring.Socket, error) {
					if what == "openIPIP" {
						return nil, broken
					}
					return ring.NewFakeSocket(netip.AddrPortFrom(c.Local, 0)), nil
				},
				openHost: func(_ string, _, n int, _ bool) (ps []ring.Port, _ ring.Offload, _ error) {
					if what == "openHost" {
						return nil, 0, broken
					}
					for range n {
						ps = append(ps, ring.NewFakeQueue())
					}
					return ps, 0, nil
				},
			}
			s := testSettings(kind)
			s.Workers = 2
			s.Offload.TunnelGSO = false
			before := descriptors()
			f, err := newForwarder(s, env)
			if f != nil || !errors.Is(err, broken) {
				t.Fatalf("%v, %v", f, err)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("not one sentence: %v", err)
			}
			if now := descriptors(); now != before {
				t.Errorf("%d descriptors were open before, %d are now", before, now)
			}
		})
	}
}
