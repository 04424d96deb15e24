package cni

import (
	stdlib "hash/crc32"
	"testing"
)

// TestCRC32: the number of a further interface's table stands in rules of pods that older plugins have attached.
func TestCRC32(t *testing.T) {
	for _, s := range []string{"", "eth0", "net1", "a-long-name.15c", "\xff\x00\x80"} {
		if got, want := crc32(s), stdlib.ChecksumIEEE([]byte(s)); got != want {
			t.Errorf("%q: %08x, want %08x", s, got, want)
		}
	}
	if n := tableOf("net1"); n != 0x7073_0000|int(stdlib.ChecksumIEEE([]byte("net1"))&0xffff) {
		t.Errorf("table %#x", n)
	}
}
