package hostnet

import (
	"context"
	"errors"
	"fmt"

	"github.com/coreos/go-iptables/iptables"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet/dump"
)

// Cleanup removes everything that the daemon owns in the host's stack; device is host.device. It is idempotent and goes
// on after errors, which come joined. What it removed is in the report; what others own stays.
func Cleanup(ctx context.Context, device string) (Report, error) {
	var r Report
	var errs []error
	for _, step := range []func(*Report) error{
		cleanTables,
		cleanForward,
		cleanRoutes,
		func(r *Report) error { return cleanLink(device, r) },
		func(r *Report) error { return cleanLink(GSODevice, r) },
	} {
		if err := ctx.Err(); err != nil {
			errs = append(errs, fmt.Errorf("the cleanup was stopped before its end: %w", err))
			break
		}
		if err := step(&r); err != nil {
			errs = append(errs, err)
		}
	}
	return r, errors.Join(errs...)
}

func cleanTables(r *Report) error {
	conn, err := OpenNFT()
	if err != nil {
		return err
	}
	var errs []error
	for _, family := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyNetdev} {
		tables, err := conn.ListTablesOfFamily(family)
		if err != nil {
			errs = append(errs, fmt.Errorf("cannot list the nft tables: %w", err))
			continue
		}
		for _, t := range tables {
			if t.Name != TableName {
				continue
			}
			name := map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet", nftables.TableFamilyNetdev: "netdev"}[family]
			conn.DelTable(t)
			if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("cannot remove the nft table %s %s: %w", name, TableName, err))
				continue
			}
			r.remove("nft table %s %s", name, TableName)
		}
	}
	return errors.Join(errs...)
}

func cleanForward(r *Report) error {
	return errors.Join(applyChain(iptables.ProtocolIPv4, nil, r), applyChain(iptables.ProtocolIPv6, nil, r))
}

// cleanRoutes removes every route with our protocol number, in every table.
func cleanRoutes(r *Report) error {
	var errs []error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := dump.All(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Protocol: RouteProtocol, Table: unix.RT_TABLE_UNSPEC},
				netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		})
		if noFamily(err) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("cannot list our routes: %w", err))
			continue
		}
		for _, rt := range list {
			p := prefix(rt.Dst, family)
			if err := netlink.RouteDel(&rt); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("cannot remove the route %s: %w", p, err))
				continue
			}
			r.remove("route %s", p)
		}
	}
	return errors.Join(errs...)
}

// cleanLink removes one of our TUNs. A device of that name that is no TUN was never ours, whatever the configuration
// says: host.device may have been mistyped.
func cleanLink(name string, r *Report) error {
	link, err := ownLink(name)
	var gone netlink.LinkNotFoundError
	if errors.As(err, &gone) {
		return nil
	}
	if err != nil {
		r.find(Finding{Severity: Warning, Subject: "device " + name, Problem: err.Error()})
		return nil
	}
	if err := netlink.LinkDel(link); err != nil {
		return fmt.Errorf("cannot remove device %s: %w", name, err)
	}
	r.remove("device %s", name)
	return nil
}
