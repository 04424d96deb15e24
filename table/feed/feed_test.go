package feed

import (
	"net/netip"
	"reflect"
	"testing"
)

// TestEqual changes every field in turn: Equal must see each, and a Clone must
// share nothing.
func TestEqual(t *testing.T) {
	p := Peer{
		Name: "b", Address: netip.MustParseAddr("192.0.2.2"), PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")},
		MAC: [6]byte{2}, Encap: "udp", Port: 1, VNI: 2,
	}
	for i := range reflect.TypeFor[Peer]().NumField() {
		q := p.Clone()
		if !q.Equal(p) {
			t.Fatal("a clone differs")
		}
		f := reflect.ValueOf(&q).Elem().Field(i)
		f.SetZero()
		if q.Equal(p) {
			t.Errorf("Equal does not see %s", reflect.TypeFor[Peer]().Field(i).Name)
		}
	}
	q := p.Clone()
	q.PodCIDRs[0] = netip.Prefix{}
	if !p.PodCIDRs[0].IsValid() {
		t.Error("a clone shares the list of CIDRs")
	}
}
