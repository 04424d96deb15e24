package cni

import "testing"

// TestAsGiven: an ipam plugin's CHECK finds the gateways that it has given, by its configuration or by CNI_ARGS.
func TestAsGiven(t *testing.T) {
	for _, test := range []struct{ addresses, args, want4, want6 string }{
		{`[]`, "", "169.254.1.1", "fe80::1"},
		{`[{"address":"10.244.1.5/24","gateway":"10.244.1.1"},null]`, "", "10.244.1.1", "fe80::1"},
		{`[{"address":"10.244.1.5/24","gateway":"10.244.1.1"}]`, "GATEWAY=10.244.1.2", "10.244.1.2", "fe80::1"},
		{`[{"address":"10.244.1.5/24"}]`, "IP=fd00::5/64;GATEWAY=10.244.1.2, fd00::1", "10.244.1.2", "fd00::1"},
		{`[]`, "IP=10.244.1.5/24,fd00::5/64;GATEWAY=10.244.1.1", "10.244.1.1", "fe80::1"},
		{`[]`, "IP=10.244.1.6/24;GATEWAY=10.244.1.1", "169.254.1.1", "fe80::1"},
		{`[]`, "IP=10.244.1.5/24;GATEWAY=10.9.9.9,x", "169.254.1.1", "fe80::1"},
	} {
		out := asGiven([]byte(`{"ipam":{"addresses":`+test.addresses+`},"prevResult":{"ips":[null,{"address":"10.244.1.5/32","gateway":"169.254.1.1"},{"address":"fd00::5/128","gateway":"fe80::1"}]}}`), test.args)
		r := parseResult(t, out)
		expect(t, r, test.want4, "prevResult", "ips", 1, "gateway")
		expect(t, r, test.want6, "prevResult", "ips", 2, "gateway")
	}
}
