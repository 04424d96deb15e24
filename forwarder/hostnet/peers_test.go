package hostnet

import (
	"context"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
)

// dropped adds up the counters of the chain leaving.
func dropped(t *testing.T, ns *nstest.NS) (n uint64) {
	t.Helper()
	ns.Do(func() {
		conn, err := nftables.New()
		check(t, err)
		table := &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
		rules, err := conn.GetRules(table, &nftables.Chain{Name: "leaving", Table: table})
		check(t, err)
		for _, r := range rules {
			for _, e := range r.Exprs {
				if c, ok := e.(*expr.Counter); ok {
					n += c.Packets
				}
			}
		}
	})
	return n
}

// TestPeersComeAndGo: the rules keep what they have counted, and the set is what is wanted.
func TestPeersComeAndGo(t *testing.T) {
	host, _, _ := node(t)
	cfg := testConfig()
	cfg.Peers = []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")}
	apply(t, host, cfg)
	if err := sendAs(host, nobody, "192.0.2.1:0", "192.0.2.2:8472"); err == nil {
		t.Fatal("nobody's packet to a peer was not dropped")
	}
	was := dropped(t, host)
	if was == 0 {
		t.Fatal("nothing was counted")
	}
	many := []netip.Addr{netip.MustParseAddr("192.0.2.3")}
	for i := range 2 * peerChunk {
		many = append(many, netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}))
	}
	host.Do(func() {
		h, err := New(cfg)
		check(t, err)
		_, err = h.Apply(context.Background())
		check(t, err)
		for _, peers := range [][]netip.Addr{many, many[:1], many[1:2], many[1:]} {
			cfg.Peers = peers
			if r, err := h.Reconfigure(context.Background(), cfg); err != nil || !r.Changed() {
				t.Errorf("%d peers: %+v, %v", len(peers), r, err)
			}
			if r, err := h.Apply(context.Background()); err != nil || r.Changed() {
				t.Errorf("%d peers: not stable: %+v, %v", len(peers), r, err)
			}
			conn, err := OpenNFT()
			check(t, err)
			have, err := readTable(conn, nftables.TableFamilyINet)
			check(t, err)
			if want := slices.SortedFunc(slices.Values(peers), netip.Addr.Compare); !slices.Equal(have.peers, want) {
				t.Errorf("%d peers are in the set, want %d", len(have.peers), len(want))
			}
		}
	})
	if is := dropped(t, host); is != was {
		t.Errorf("%d packets are counted, and were %d", is, was)
	}

	// Somebody has emptied the set.
	host.Do(func() {
		conn, err := nftables.New()
		check(t, err)
		conn.FlushSet(&nftables.Set{Table: &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}, Name: peerSet})
		check(t, conn.Flush())
	})
	if r := apply(t, host, cfg); !slices.Equal(r.Added, []string{"2000 peers in nft table inet penstock"}) {
		t.Errorf("%+v", r)
	}
	if is := dropped(t, host); is != was {
		t.Errorf("%d packets are counted, and were %d", is, was)
	}

	// A node whose address is of the other family now, and rules that do not say so.
	cfg.Tunnels, cfg.Address = nil, netip.MustParseAddr("192.0.2.1")
	apply(t, host, cfg)
	cfg.Address, cfg.Peers = netip.MustParseAddr("2001:db8::1"), []netip.Addr{netip.MustParseAddr("2001:db8::2")}
	apply(t, host, cfg)
	if r := apply(t, host, cfg); r.Changed() {
		t.Errorf("not stable: %+v", r)
	}
}
