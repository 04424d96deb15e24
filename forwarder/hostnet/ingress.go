package hostnet

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet/dump"
)

// An AF_PACKET socket is a tap: what it reads, the host's stack processes as well. One chain a device in
// `netdev penstock`, with the policy drop and no rules, stops that: taps of ETH_P_ALL run before the ingress hook
// (net/core/dev.c, __netif_receive_skb_core), everything else behind it.
//
// A chain goes with its device up to Linux 6.15, and waits for a device of the same name from 6.16 on.

// ingressPriority is before all others, so that nobody forwards or marks what is ours to read.
var ingressPriority = nftables.ChainPriorityRef(-500)

var netdevTable = &nftables.Table{Name: TableName, Family: nftables.TableFamilyNetdev}

// BlockIngress keeps what arrives from device out of the host's stack; taps go on seeing it. A chain that is there already
// is made to drop (nf_tables_updchain in net/netfilter/nf_tables_api.c). It is not asked for before, as a list grows with the pods.
func (h *Host) BlockIngress(device string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, err := DeviceIndex(device); err != nil { // newer kernels take a chain for a device that is yet to come
		return fmt.Errorf("cannot block the ingress of %s: %w", device, err)
	}
	conn, err := OpenNFT()
	if err != nil {
		return err
	}
	conn.AddTable(netdevTable)
	addIngress(conn, device)
	err = conn.Flush()
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EOPNOTSUPP) { // one that kernels up to 6.3 do not lead to another device
		conn.AddTable(netdevTable)
		conn.DelChain(&nftables.Chain{Name: device, Table: netdevTable})
		addIngress(conn, device)
		err = conn.Flush()
	}
	if err != nil {
		return fmt.Errorf("cannot block the ingress of %s: %w; the kernel needs nf_tables for the family netdev (CONFIG_NF_TABLES_NETDEV)", device, err)
	}
	return nil
}

// UnblockIngress is the inverse. Device or chain may be gone already.
func (h *Host) UnblockIngress(device string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	conn, err := OpenNFT()
	if err != nil {
		return err
	}
	have, err := ingressChains(conn)
	if err != nil || !slices.Contains(have, device) {
		return err
	}
	conn.DelChain(&nftables.Chain{Name: device, Table: netdevTable})
	// ENOENT: the device went away between the two, and an older kernel has taken the chain with it.
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("cannot unblock the ingress of %s: %w", device, err)
	}
	return nil
}

// Blocked lists the devices that have a chain, sorted.
func (h *Host) Blocked() ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	conn, err := OpenNFT()
	if err != nil {
		return nil, err
	}
	return ingressChains(conn)
}

// ReconcileIngress blocks exactly these devices, in one transaction: at the start, when pods may have come and gone
// while nobody looked. Devices that do not exist are left out and named in the findings.
func (h *Host) ReconcileIngress(devices []string) (Report, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var r Report
	conn, err := OpenNFT()
	if err != nil {
		return r, err
	}
	have, err := ingressChains(conn)
	if err != nil {
		return r, err
	}
	present, err := linkNames()
	if err != nil {
		return r, err
	}
	conn.AddTable(netdevTable)
	for _, name := range have {
		if !slices.Contains(devices, name) || !present[name] {
			conn.DelChain(&nftables.Chain{Name: name, Table: netdevTable})
			r.remove("ingress drop on %s", name)
		}
	}
	for _, name := range slices.Compact(slices.Sorted(slices.Values(devices))) {
		switch {
		case !present[name]:
			r.find(Finding{Severity: Warning, Subject: "device " + name, Problem: fmt.Sprintf("%s should be blocked for the host's stack, but there is no such device", name)})
		case !slices.Contains(have, name):
			addIngress(conn, name)
			r.add("ingress drop on %s", name)
		}
	}
	if !r.Changed() {
		return r, nil // and no table where none was
	}
	if err := conn.Flush(); err != nil {
		return Report{}, fmt.Errorf("cannot reconcile the nft table netdev %s, it is as it was: %w", TableName, err)
	}
	return r, nil
}

// KeepIngress blocks those of the devices that have lost their drop, in one transaction, and touches nothing else. It
// returns their names. Devices that do not exist are left out.
func (h *Host) KeepIngress(devices []string) (again []string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	conn, err := OpenNFT()
	if err != nil {
		return nil, err
	}
	chains, err := ownIngress(conn)
	if err != nil {
		return nil, err
	}
	dropping := make(map[string]bool, len(chains))
	for _, ch := range chains {
		dropping[ch.Name] = drops(ch)
	}
	var lost []string
	for _, name := range devices {
		if !dropping[name] {
			lost = append(lost, name)
		}
	}
	if len(lost) == 0 {
		return nil, nil
	}
	present, err := linkNames()
	if err != nil {
		return nil, err
	}
	conn.AddTable(netdevTable)
	for _, name := range lost {
		if !present[name] {
			continue
		}
		if _, accepts := dropping[name]; accepts {
			conn.DelChain(&nftables.Chain{Name: name, Table: netdevTable})
		}
		addIngress(conn, name)
		again = append(again, name)
	}
	if len(again) == 0 {
		return nil, nil
	}
	if err := conn.Flush(); err != nil {
		return nil, fmt.Errorf("cannot put the ingress drops of %d devices back: %w", len(again), err)
	}
	return again, nil
}

func addIngress(conn *nftables.Conn, device string) {
	drop := nftables.ChainPolicyDrop
	conn.AddChain(&nftables.Chain{Name: device, Table: netdevTable, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookIngress, Priority: ingressPriority, Policy: &drop, Device: device})
}

func ingressChains(conn *nftables.Conn) ([]string, error) {
	chains, err := ownIngress(conn)
	var names []string
	for _, ch := range chains {
		names = append(names, ch.Name)
	}
	slices.Sort(names)
	return names, err
}

// ownIngress lists our drops. The chain of an uplink (carrier.go) is none: it accepts, and has a rule.
func ownIngress(conn *nftables.Conn) ([]*nftables.Chain, error) {
	chains, err := netdevChains(conn)
	if err != nil {
		return nil, err
	}
	uplinks, err := carrierChains(conn, chains, "")
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(chains, func(ch *nftables.Chain) bool {
		return slices.ContainsFunc(uplinks, func(u carrierChain) bool { return u.device == ch.Name })
	}), nil
}

// netdevChains lists the chains of our table, but for the one that redirects superframes (package uplink).
func netdevChains(conn *nftables.Conn) ([]*nftables.Chain, error) {
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return nil, fmt.Errorf("cannot list the chains of the nft table netdev %s: %w", TableName, err)
	}
	return slices.DeleteFunc(chains, func(ch *nftables.Chain) bool { return ch.Table.Name != TableName || ch.Name == GSODevice }), nil
}

func linkNames() (map[string]bool, error) {
	links, err := dump.All(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("cannot list the devices: %w", err)
	}
	names := make(map[string]bool, len(links))
	for _, l := range links {
		names[l.Attrs().Name] = true
	}
	return names, nil
}
