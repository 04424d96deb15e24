package hostnet

import (
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// FuzzRuleMessage: what nf_tables tells is about our table, about another's, or cannot be read, which counts as ours.
func FuzzRuleMessage(f *testing.F) {
	message := func(name string) []byte {
		e := netlink.NewAttributeEncoder()
		e.String(unix.NFTA_TABLE_NAME, name)
		b, err := e.Encode()
		if err != nil {
			f.Fatal(err)
		}
		return append([]byte{unix.NFPROTO_NETDEV, 0, 0, 7}, b...)
	}
	f.Add(message(TableName))
	f.Add(message("filter"))
	f.Add([]byte{1, 0, 0, 7, 3, 0, 1, 0})
	for name, want := range map[string]bool{TableName: true, "filter": false, TableName + "s": false, "": false} {
		if namesOurTable(netlink.Message{Data: message(name)}) != want {
			f.Errorf("a message about the table %q: ours is %v", name, !want)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) { namesOurTable(netlink.Message{Data: b}) })
}
