package config

import (
	"errors"
	"strings"
	"testing"
)

// expect compares problems with "line:column: key: beginning of the message".
func expect(t *testing.T, name string, err error, want []string) {
	t.Helper()
	var got Errors
	if err != nil && !errors.As(err, &got) {
		t.Errorf("%s: error %T %v", name, err, err)
		return
	}
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(want):
			t.Errorf("%s: not expected: %v", name, got[i])
		case i >= len(got):
			t.Errorf("%s: missing: %s", name, want[i])
		case !strings.HasPrefix(got[i].String(), "x:"+want[i]):
			t.Errorf("%s:\ngot  %v\nwant x:%s", name, got[i], want[i])
		case strings.Contains(got[i].Message, "%!") || strings.Contains(got[i].Message, "\n"):
			t.Errorf("%s: not a sentence: %v", name, got[i])
		}
	}
}

func TestProblems(t *testing.T) {
	for _, x := range wrong {
		t.Run(x.name, func(t *testing.T) {
			_, err := Parse("x", []byte(x.file))
			expect(t, x.name, err, x.want)
		})
	}
}

// peerB is a third line.
const peerB = "peers: [{name: node-b, address: 192.0.2.2, podCIDRs: [10.244.2.0/24]}]\n"

// wrong are files and all that is wrong with them. Most begin with needed, so
// that what they say of their own is in line 3 and on.
var wrong = []struct {
	name string
	file string
	want []string
}{
	{"empty", "", []string{
		"1:1: node.podCIDRs: this node's pods need addresses",
		"1:1: network.cidrs: give the CIDRs",
	}},
	{"only comments", "# nothing\n", []string{"1:1: node.podCIDRs: ", "1:1: network.cidrs: "}},
	{"empty mappings", "node:\nnetwork:\nlimits:\npeers:\n", []string{"1:6: node.podCIDRs: ", "2:9: network.cidrs: "}},
	{"all at once, by line", `workers: many
network: {cidrs: [10.244.0.0/33]}
node:
  podCIDRs: [10.244.1.0/24]
  name: a b
encap: {type: gre}
`, []string{
		`1:10: workers: this must be a whole number from 0 to 256, not "many"`,
		`2:19: network.cidrs[0]: this must be a CIDR`,
		`5:9: node.name: "a b" is no node name`,
		`6:15: encap.type: this must be udp, vxlan or ipip, not "gre"`,
	}},

	// A misspelt key is one mistake: what it meant is not missing as well.
	{"podCidrs", "node: {podCidrs: [10.244.1.0/24]}\nnetwork: {cidrs: [10.244.0.0/16]}\n", []string{"1:8: node.podCidrs: this key is unknown: did you mean podCIDRs?"}},
	{"nodes", "nodes: {podCIDRs: [10.244.1.0/24]}\nnetwork: {cidrs: [10.244.0.0/16]}\n", []string{"1:1: nodes: this key is unknown: did you mean node?"}},
	{"podCidrs of a peer", needed + "peers: [{name: node-b, adress: 192.0.2.2, podCidrs: [10.244.2.0/24]}]\n", []string{
		"3:24: peers[0].adress: this key is unknown: did you mean address?",
		"3:43: peers[0].podCidrs: this key is unknown: did you mean podCIDRs?",
	}},

	// The file as a whole.
	{"no YAML", "node: [\n", []string{"1:1: this is not YAML: did not find expected node content"}},
	{"no YAML in line 1", "a: b: c\n", []string{"1:1: this is not YAML: mapping values are not allowed"}},
	{"no YAML further down", needed + "encap:\n  type: vxlan\n port: 1\n", []string{"5:1: this is not YAML: "}},
	{"tab", needed + "encap:\n\ttype: vxlan\n", []string{"4:1: this is not YAML: found character that cannot start any token"}},
	{"list", "- a\n", []string{"1:1: this must be a mapping of keys (node, network,", "1:1: node.podCIDRs: ", "1:1: network.cidrs: "}},
	{"text", "penstock\n", []string{`1:1: this must be a mapping of keys`, "1:1: node.podCIDRs: ", "1:1: network.cidrs: "}},
	{"second document", needed + "---\nworkers: 1\n", []string{"3:1: a second document begins here"}},
	{"second document is no YAML", needed + "---\na: [\n", []string{"4:1: this is not YAML"}},
	{"not UTF-8", needed + "state: /\xff\n", []string{"3:9: this byte is not UTF-8"}},
	{"control character", needed + "state: /\x01\n", []string{"3:9: the control character U+0001"}},

	// Keys.
	{"unknown key", needed + "colour: blue\n", []string{"3:1: colour: this key is unknown: remove it or use one of node, network, encap,"}},
	{"misspelt key", needed + "worker: 2\n", []string{"3:1: worker: this key is unknown: did you mean workers?"}},
	{"wrong case", needed + "encap:\n  copyDscp: true\n", []string{"4:3: encap.copyDscp: this key is unknown: did you mean copyDSCP?"}},
	{"unknown key of a peer", needed + "peers:\n- {name: b, adress: 192.0.2.2, address: 192.0.2.2, podCIDRs: [10.244.2.0/24]}\n", []string{"4:13: peers[0].adress: this key is unknown: did you mean address?"}},
	{"duplicate key", needed + "workers: 1\nstate: /a\nworkers: 2\n", []string{"5:1: workers: this key was already given in line 3"}},
	{"duplicate inner key", needed + "encap: {vni: 1, vni: 2}\n", []string{"3:17: encap.vni: this key was already given in line 3"}},
	{"key is a list", needed + "encap: {[a]: 1}\n", []string{"3:9: encap: a key must be a word, not a list"}},
	{"merge key", "a: &x {}\n" + needed + "encap: {<<: *x}\n", []string{"1:1: a: this key is unknown", "4:9: encap.<<: this key is unknown"}},
	{"alias", strings.Replace(needed, "[10.244.0.0/16]", "&x [10.244.0.0/16]", 1) + "peers: *x\n", []string{"3:8: peers: an alias (*x) does not work in this file"}},

	// Types.
	{"mapping wanted", needed + "encap: vxlan\n", []string{`3:8: encap: this must be a mapping of keys (type, port, vni, mtu, sourcePorts, copyDSCP, clampMSS), not "vxlan"`}},
	{"list wanted", needed + "peers: {}\n", []string{"3:8: peers: this must be a list, not a mapping"}},
	{"CIDR alone", "node: {name: a, podCIDRs: 10.244.1.0/24}\nnetwork: {cidrs: {}}\n", []string{
		`1:27: node.podCIDRs: this must be a list, not "10.244.1.0/24": put it in [brackets]`,
		"2:18: network.cidrs: this must be a list, not a mapping",
	}},
	{"text wanted", needed + "state: 5\ncontrol: {socket: [a]}\nhost: {device: true}\n", []string{
		"3:8: state: this must be text, not 5: put it in quotes",
		"4:19: control.socket: this must be text, not a list",
		"5:16: host.device: this must be text, not true",
	}},
	{"truth wanted", needed + "host: {masquerade: yes, forward: 1}\n", []string{
		`3:20: host.masquerade: this must be true or false, not "yes"`,
		"3:34: host.forward: this must be true or false, not 1",
	}},
	{"number wanted", needed + "workers: 1.5\nencap: {port: 0x10, vni: 010, mtu: }\nnative: {port: '1'}\n", []string{
		"3:10: workers: this must be a whole number from 0 to 256, not 1.5",
		"4:15: encap.port: this must be a whole number from 1 to 65535, not 0x10",
		"4:26: encap.vni: this must be a whole number from 1 to 16777215, not 010",
		"4:36: encap.mtu: this must be a whole number from 0 to 65535, not nothing",
		`5:16: native.port: this must be a whole number from 1 to 65535, not "1"`,
	}},
	{"null", needed + "state:\nworkers: ~\nencap: {type: null}\n", []string{
		"3:7: state: this must be text, not nothing",
		"4:10: workers: this must be a whole number",
		"5:15: encap.type: this must be udp, vxlan or ipip, not nothing",
	}},
	{"switches", needed + "offload: {tunnelGSO: on, udpSegment: true, udpGRO: v2, tunOffload: [off], mergeWrites: 0, packetRing: v4, tunBatch: on}\nnative: {carrier: sctp}\npriority: -19\npolling: 100\n", []string{
		`3:22: offload.tunnelGSO: this must be auto or off, not "on"`,
		"3:38: offload.udpSegment: this must be auto or off, not true",
		`3:52: offload.udpGRO: this must be auto or off, not "v2"`,
		"3:68: offload.tunOffload: this must be auto or off, not a list",
		"3:88: offload.mergeWrites: this must be auto or off, not 0",
		`3:103: offload.packetRing: this must be auto, v2, v3 or off, not "v4"`,
		`3:117: offload.tunBatch: this must be auto or off, not "on"`,
		`4:19: native.carrier: this must be auto, tcp, udp or off, not "sctp"`,
		"5:11: priority: this must be auto or off, not -19",
		"6:10: polling: this must be auto or off, not 100",
	}},
	{"sizes", needed + "limits: {podBuffer: 2MB, totalBuffer: lots}\n", []string{
		`3:21: limits.podBuffer: this must be a size such as 512KiB, 2MiB or 1GiB, not "2MB"`,
		`3:39: limits.totalBuffer: this must be a size`,
	}},

	// Ranges.
	{"numbers out of range", needed + "workers: 257\nencap: {port: 0, vni: 16777216, mtu: 99999999999999999999, sourcePorts: 65}\nnative: {port: 65536}\n", []string{
		"3:10: workers: 257 is out of range: the number of workers goes from 0 to 256",
		"4:15: encap.port: 0 is out of range: a UDP port goes from 1 to 65535",
		"4:23: encap.vni: 16777216 is out of range: a VNI goes from 1 to 16777215",
		"4:38: encap.mtu: 99999999999999999999 is out of range: an MTU goes from 0 to 65535",
		"4:73: encap.sourcePorts: 65 is out of range",
		"5:16: native.port: 65536 is out of range",
	}},
	{"VNI 0", needed + "encap: {vni: 0}\n", []string{"3:14: encap.vni: 0 is out of range: a VNI goes from 1 to 16777215"}},
	{"sizes out of range", needed + "limits: {podBuffer: 100KiB, totalBuffer: 99999999999999999GiB}\n", []string{
		"3:21: limits.podBuffer: 100KiB is out of range: this size goes from 512KiB to 1GiB",
		"3:42: limits.totalBuffer: 99999999999999999GiB is out of range: this size goes from 512KiB to 1024GiB",
	}},
	{"total less than one", needed + "limits:\n  podBuffer: 1GiB\n", []string{"4:14: limits.podBuffer: totalBuffer (512MiB) is less than podBuffer (1GiB)"}},
	{"total given less than one", needed + "limits:\n  podBuffer: 4MiB\n  totalBuffer: 3MiB\n", []string{"5:16: limits.totalBuffer: totalBuffer (3MiB) is less than podBuffer (4MiB)"}},

	// Addresses and prefixes.
	{"address is none", "node: {name: a, address: here, podCIDRs: [10.244.1.0/24]}\nnetwork: {cidrs: [10.244.0.0/16]}\n", []string{`1:26: node.address: this must be an IP address such as 192.0.2.1 or 2001:db8::1, not "here"`}},
	{"address with length", "node: {name: a, address: 192.0.2.1/24, podCIDRs: [10.244.1.0/24]}\nnetwork: {cidrs: [10.244.0.0/16]}\n", []string{"1:26: node.address: this must be an IP address"}},
	{"addresses of no use", needed + `peers:
- {name: b, podCIDRs: [10.244.2.0/24], address: 0.0.0.0}
- {name: c, podCIDRs: [10.244.3.0/24], address: 127.0.0.1}
- {name: d, podCIDRs: [10.244.4.0/24], address: 224.0.0.1}
- {name: e, podCIDRs: [10.244.5.0/24], address: 169.254.0.1}
- {name: f, podCIDRs: [10.244.6.0/24], address: 255.255.255.255}
- {name: g, podCIDRs: [10.244.7.0/24], address: "::ffff:192.0.2.1"}
- {name: h, podCIDRs: [10.244.8.0/24], address: "2001:db8::1%eth0"}
`, []string{
		"4:49: peers[0].address: 0.0.0.0 cannot be reached from other nodes (unspecified)",
		"5:49: peers[1].address: 127.0.0.1 cannot be reached from other nodes (loopback)",
		"6:49: peers[2].address: 224.0.0.1 cannot be reached from other nodes (multicast)",
		"7:49: peers[3].address: 169.254.0.1 cannot be reached from other nodes (link-local)",
		"8:49: peers[4].address: 255.255.255.255 cannot be reached from other nodes (broadcast)",
		"9:49: peers[5].address: ::ffff:192.0.2.1 is an IPv4-mapped address: write 192.0.2.1",
		"10:49: peers[6].address: 2001:db8::1%eth0 has a zone",
	}},
	{"CIDR is none", "node: {name: a, podCIDRs: [10.244.1.0, [], '::ffff:10.0.0.0/104']}\nnetwork: {cidrs: [10.244.0.0/16]}\n", []string{
		`1:28: node.podCIDRs[0]: this must be a CIDR such as 10.244.1.0/24 or fd00:10:244:1::/64, not "10.244.1.0"`,
		"1:40: node.podCIDRs[1]: this must be a CIDR such as 10.244.1.0/24 or fd00:10:244:1::/64, not a list",
		"1:44: node.podCIDRs[2]: this must be a CIDR",
	}},
	{"host bits", "node: {name: a, podCIDRs: [10.244.1.1/24]}\nnetwork: {cidrs: [10.244.0.0/16]}\n", []string{"1:28: node.podCIDRs[0]: 10.244.1.1/24 has bits set behind its length: write 10.244.1.0/24"}},
	{"reserved", "node: {name: a, podCIDRs: [10.244.1.0/24]}\nnetwork: {cidrs: [10.244.0.0/16, 127.0.0.0/9, 224.0.0.0/8, 169.254.1.0/24, 'fe80::/64', '::/0', '0.0.0.0/0']}\n", []string{
		"2:34: network.cidrs[1]: 127.0.0.0/9 has no room for pods: it touches 127.0.0.0/8 (loopback)",
		"2:47: network.cidrs[2]: 224.0.0.0/8 has no room for pods: it touches 224.0.0.0/4 (multicast)",
		"2:60: network.cidrs[3]: 169.254.1.0/24 has no room for pods: it touches 169.254.0.0/16 (link-local",
		"2:76: network.cidrs[4]: fe80::/64 has no room",
		"2:89: network.cidrs[5]: ::/0 has no room",
		"2:97: network.cidrs[6]: 0.0.0.0/0 has no room",
	}},
	{"no room for pods", "node: {name: a, podCIDRs: [10.244.1.1/32]}\nnetwork: {cidrs: [10.244.0.0/16]}\n", []string{"1:28: node.podCIDRs[0]: 10.244.1.1/32 has no room for a pod"}},
	{"outside the cluster", "node: {name: a, podCIDRs: [10.245.1.0/24, 'fd00::/64']}\nnetwork: {cidrs: [10.244.0.0/16]}\n" + strings.Replace(peerB, "10.244.2.0/24", "10.0.0.0/8", 1), []string{
		"1:28: node.podCIDRs[0]: 10.245.1.0/24 lies outside network.cidrs (line 2)",
		"1:43: node.podCIDRs[1]: fd00::/64 lies outside network.cidrs (line 2)",
		"3:55: peers[0].podCIDRs[0]: 10.0.0.0/8 lies outside network.cidrs (line 2)",
		"3:55: peers[0].podCIDRs[0]: 10.0.0.0/8 overlaps 10.245.1.0/24 of this node (line 1)",
	}},
	{"cluster overlaps itself", "node: {name: a, podCIDRs: [10.244.1.0/24]}\nnetwork:\n  cidrs:\n  - 10.244.0.0/16\n  - 10.244.1.0/24\n", []string{"5:5: network.cidrs[1]: 10.244.1.0/24 overlaps 10.244.0.0/16 (line 4)"}},
	{"own overlap", "node: {name: a, podCIDRs: [10.244.1.0/24, 10.244.1.0/25]}\nnetwork: {cidrs: [10.244.0.0/16]}\n", []string{"1:43: node.podCIDRs[1]: 10.244.1.0/25 overlaps 10.244.1.0/24 of this node (line 1)"}},
	{"peer overlaps us", needed + strings.Replace(peerB, "10.244.2.0/24", "10.244.0.0/23", 1), []string{"3:55: peers[0].podCIDRs[0]: 10.244.0.0/23 overlaps 10.244.1.0/24 of this node (line 1)"}},
	{"peers overlap", needed + "peers:\n- {name: b, address: 192.0.2.2, podCIDRs: [10.244.2.0/24]}\n- {name: c, address: 192.0.2.3, podCIDRs: [10.244.3.0/24, 10.244.2.128/25]}\n", []string{"5:59: peers[1].podCIDRs[1]: 10.244.2.128/25 overlaps 10.244.2.0/24 of peer b (line 4)"}},
	{"underlay inside the overlay", "node: {name: a, address: 10.244.9.1, podCIDRs: [10.244.1.0/24]}\nnetwork: {cidrs: [10.244.0.0/16]}\n" + strings.Replace(peerB, "192.0.2.2", "10.244.9.2", 1), []string{
		"1:26: node.address: 10.244.9.1 lies in 10.244.0.0/16 (line 2)",
		"3:33: peers[0].address: 10.244.9.2 lies in 10.244.0.0/16 (line 2)",
	}},
	{"peer inside the overlay, own address open", "node: {name: a, podCIDRs: [10.244.1.0/24]}\nnetwork: {cidrs: [10.244.0.0/16]}\n" + strings.Replace(peerB, "192.0.2.2", "10.244.9.2", 1), []string{"3:33: peers[0].address: 10.244.9.2 lies in"}},

	// Encapsulation.
	{"MTU too small", needed + "encap: {mtu: 575}\n", []string{"3:14: encap.mtu: 575 is too small: pods need at least 576"}},
	{"MTU too small for IPv6", "node: {name: a, podCIDRs: [10.244.1.0/24]}\nnetwork: {cidrs: [10.244.0.0/16, fd00::/48]}\nencap: {mtu: 1279}\n", []string{"3:14: encap.mtu: 1279 is too small for IPv6 pods: they need at least 1280"}},
	{"MTU too large", needed + "encap: {mtu: 65486}\n", []string{"3:14: encap.mtu: 65486 is too large: with vxlan a packet of at most 65485 bytes"}},
	{"MTU too large for any packet", needed + "encap: {mtu: 70000}\n", []string{"3:14: encap.mtu: 70000 is out of range"}},
	{"ipip with port", needed + "encap: {type: ipip, port: 1}\n", []string{"3:27: encap.port: ipip has no port"}},
	{"ipip over IPv6", strings.Replace(needed, "192.0.2.1", "2001:db8::1", 1) + "encap: {type: ipip}\n", []string{"1:31: node.address: 2001:db8::1 is an IPv6 address, but ipip runs over IPv4 only"}},
	{"source ports without vxlan", needed + "encap: {type: udp, sourcePorts: 2}\n", []string{"3:33: encap.sourcePorts: only vxlan chooses its source port"}},
	{"native on our port", needed + "native: {carrier: udp, port: 8472}\n", []string{"3:30: native.port: 8472 is the port of encap too: give the native stream another, such as 7471"}},
	{"the tcp carrier on a port of its tags", needed + "native: {carrier: tcp, port: 32768}\n", []string{"3:30: native.port: 32768 is one of the ports from which carrier tcp sends, as connections of this node do: give one below 32768, such as 7471"}},
	{"auto on a port of its tags", needed + "native: {carrier: auto, port: 65535}\n", []string{"3:31: native.port: 65535 is one of the ports from which carrier auto sends"}},
	{"the tcp carrier on our port", needed + "native: {carrier: tcp, port: 8472}\n", []string{"3:30: native.port: 8472 is the port of encap too: give the native stream another, such as 7471"}},
	{"our port on native's", needed + "encap: {port: 7471}\nnative: {carrier: auto}\n", []string{"4:9: native.port: 7471 is the port of encap too (line 3): give the native stream another, such as 7472"}},

	// Peers.
	{"peer without anything", needed + "peers:\n- {}\n", []string{
		`4:3: peers[0].name: "" is no node name`,
		"4:3: peers[0].address: the peer has no address",
		"4:3: peers[0].podCIDRs: the peer has no pods",
	}},
	{"peer is text", needed + "peers: [b]\n", []string{
		`3:9: peers[0]: this must be a mapping of keys (name, address,`,
		"3:9: peers[0].name: ", "3:9: peers[0].address: ", "3:9: peers[0].podCIDRs: ",
	}},
	{"peers twice", needed + `peers:
- name: b
  address: 192.0.2.2
  podCIDRs: [10.244.2.0/24]
- name: b
  address: 192.0.2.2
  podCIDRs: [10.244.3.0/24]
`, []string{
		"7:9: peers[1].name: b is the name of peers[0] too (line 4)",
		"8:12: peers[1].address: 192.0.2.2 is the address of peer b too (line 5)",
	}},
	{"peer is us", needed + "peers: [{name: node-a, address: 192.0.2.1, podCIDRs: [10.244.2.0/24]}]\n", []string{
		"3:16: peers[0].name: node-a is our own name (line 1)",
		"3:33: peers[0].address: 192.0.2.1 is our own address (line 1): list the other nodes only",
	}},
	{"families mixed", needed + strings.Replace(peerB, "192.0.2.2", "2001:db8::2", 1), []string{"3:33: peers[0].address: 2001:db8::2 and our own address 192.0.2.1 (line 1) are of different families"}},
	{"peer's values", needed + "peers: [{name: b, address: 192.0.2.2, podCIDRs: [10.244.2.0/24], encap: gre, port: 0, vni: 0, mac: 5}]\n", []string{
		`3:73: peers[0].encap: this must be udp, vxlan or ipip, not "gre"`,
		"3:84: peers[0].port: 0 is out of range",
		"3:92: peers[0].vni: 0 is out of range",
		"3:100: peers[0].mac: this must be a MAC address of six bytes such as 02:00:00:00:00:02, not 5",
	}},
	{"MACs", needed + `peers:
- {name: b, address: 192.0.2.2, podCIDRs: [10.244.2.0/24], mac: 02:00:00:00:00}
- {name: c, address: 192.0.2.3, podCIDRs: [10.244.3.0/24], mac: 01:00:5e:00:00:01}
- {name: d, address: 192.0.2.4, podCIDRs: [10.244.4.0/24], mac: 00:00:00:00:00:00}
- {name: e, address: 192.0.2.5, podCIDRs: [10.244.5.0/24], mac: 02:00:00:00:00:05:06:07}
- {name: f, address: 192.0.2.6, podCIDRs: [10.244.6.0/24], mac: 02:00:00:00:00:06, encap: udp}
- {name: g, address: 192.0.2.7, podCIDRs: [10.244.7.0/24], mac: 02:00:00:00:00:07}
- {name: h, address: 192.0.2.8, podCIDRs: [10.244.8.0/24], mac: 02:00:00:00:00:07}
- {name: i, address: 192.0.2.9, podCIDRs: [10.244.9.0/24], mac: 02:00:00:00:00:07, vni: 2}
`, []string{
		"4:65: peers[0].mac: this must be a MAC address of six bytes",
		"5:65: peers[1].mac: 01:00:5e:00:00:01 is a multicast address",
		"6:65: peers[2].mac: 00:00:00:00:00:00 is no station's address",
		"7:65: peers[3].mac: this must be a MAC address of six bytes",
		"8:65: peers[4].mac: only vxlan has MAC addresses, and this peer uses udp",
		"10:65: peers[6].mac: 02:00:00:00:00:07 is the MAC address of peer g too (line 9)",
	}},
	{"our own VTEP's MAC", needed + "peers: [{name: b, address: 192.0.2.2, podCIDRs: [10.244.2.0/24], mac: 02:01:dd:0b:1c:70}]\n", []string{"3:71: peers[0].mac: 02:01:dd:0b:1c:70 is our own VTEP's MAC address"}},
	{"ipip peer with port and MAC", needed + "peers: [{name: b, address: 192.0.2.2, podCIDRs: [10.244.2.0/24], encap: ipip, port: 1, mac: 02:00:00:00:00:01}]\n", []string{
		"3:85: peers[0].port: ipip has no port",
		"3:93: peers[0].mac: only vxlan has MAC addresses, and this peer uses ipip",
	}},
	{"ipip peer over IPv6", strings.Replace(needed, "192.0.2.1", "2001:db8::1", 1) + "peers: [{name: b, address: '2001:db8::2', podCIDRs: [10.244.2.0/24], encap: ipip}]\n", []string{"3:77: peers[0].encap: ipip runs over IPv4 only"}},

	// The host, listeners, paths.
	{"device", needed + "host: {device: a-name-of-16-char}\n", []string{`3:16: host.device: "a-name-of-16-char" is no name for a network device`}},
	{"device with slash", needed + "host: {device: a/b}\n", []string{"3:16: host.device: "}},
	{"device of the system", needed + "host: {device: lo}\n", []string{"3:16: host.device: lo is taken by the system"}},
	{"device of ours", needed + "host: {device: penstock-gso}\n", []string{"3:16: host.device: penstock-gso is taken by"}},
	{"debug everywhere", needed + "debug: {listen: ':9474'}\n", []string{`3:17: debug.listen: ":9474" means every address of the node`}},
	{"debug not on loopback", needed + "debug: {listen: '192.0.2.1:9474'}\n", []string{"3:17: debug.listen: 192.0.2.1 is no loopback address"}},
	{"debug on a name", needed + "debug: {listen: 'localhost:9474'}\n", []string{`3:17: debug.listen: "localhost:9474" is no IP address with a port`}},
	{"metrics without port", needed + "metrics: {listen: 192.0.2.1}\n", []string{`3:19: metrics.listen: "192.0.2.1" is no IP address with a port`}},
	{"metrics on a bad port", needed + "metrics: {listen: ':99999'}\n", []string{`3:19: metrics.listen: ":99999" `}},
	{"metrics where debug is", needed + "metrics: {listen: ':9474'}\n", []string{"3:19: metrics.listen: debug.listen has this address already"}},
	{"metrics where native is", needed + "metrics: {listen: ':7471'}\nnative: {carrier: auto}\n", []string{"3:19: metrics.listen: 7471 is the port of the native stream too"}},
	{"relative paths", needed + "state: lib\ncontrol: {socket: ./sock}\n", []string{
		`3:8: state: "lib" is no absolute path: give one such as /var/lib/penstock`,
		`4:19: control.socket: "./sock" is no absolute path`,
	}},
	{"no paths", needed + "state: ''\ncontrol: {socket: ''}\n", []string{`3:8: state: "" is no absolute path`, `4:19: control.socket: "" is no absolute path`}},
	{"long socket path", needed + "control: {socket: /" + strings.Repeat("a", 107) + "}\n", []string{"3:19: control.socket: the path has 108 bytes, but a unix socket's has at most 107"}},
	{"state in the root", needed + "state: /../\n", []string{"3:8: state: the root directory is no place for state"}},
	{"node name", strings.Replace(needed, "node-a", "'-a'", 1), []string{`1:14: node.name: "-a" is no node name`}},
	{"node name empty", strings.Replace(needed, "node-a", "''", 1), []string{`1:14: node.name: "" is no node name`}},
	{"node name is a number", strings.Replace(needed, "node-a", "5", 1), []string{`1:14: node.name: this must be text, not 5`}},
}
