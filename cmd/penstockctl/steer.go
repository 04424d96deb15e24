package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/penstock-net/penstock/forwarder/config"
	"github.com/penstock-net/penstock/forwarder/control"
)

func (t *tool) reload() *cobra.Command {
	return show(t, "reload", "Make the daemon read its configuration file again", "", (*control.Client).Reload, func(r control.Reloaded) {
		if len(r.Changed) == 0 {
			fmt.Fprintln(t.out, "reloaded; nothing has changed")
			return
		}
		fmt.Fprintln(t.out, "reloaded; changed:", strings.Join(r.Changed, ", "))
	})
}

func (t *tool) logLevel() *cobra.Command {
	levels := []string{"debug", "info", "warn", "error"}
	return &cobra.Command{
		Use:       "loglevel [LEVEL]",
		Short:     "Show or change the level of the daemon's log, until it ends",
		Args:      takes(0, 1),
		ValidArgs: levels,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 {
				if err := oneOf("level", args[0], levels...); err != nil {
					return err
				}
			}
			return t.daemon(c, func(ctx context.Context, client *control.Client) error {
				if len(args) == 1 {
					if err := client.SetLogLevel(ctx, args[0]); err != nil {
						return err
					}
				}
				level, err := client.LogLevel(ctx)
				if err != nil {
					return err
				}
				if t.output == "json" {
					return t.json(control.LogLevel{Level: level})
				}
				fmt.Fprintln(t.out, level)
				return nil
			})
		},
	}
}

func (t *tool) attach() *cobra.Command {
	var r control.AttachRequest
	var list []string
	c := &cobra.Command{
		Use:   "attach CONTAINER INTERFACE --address ADDRESS…",
		Short: "Make a pod a port of the daemon, by hand",
		Long: `Make a pod a port of the daemon, by hand.

With --attach veth (the default) the device is the host end of a veth that you have made; its other end is in the pod and has
the addresses, and a default route by 169.254.1.1 or fe80::1. With --attach tun the daemon makes a TUN of that name, which you
then move into the pod.`,
		Example: "  penstockctl attach c1 eth0 --device veth-c1 --address 10.244.1.2 --address fd00:10:244:1::2",
		Args: func(c *cobra.Command, args []string) error {
			if err := takes(2, 2)(c, args); err != nil {
				return err
			}
			if !c.Flags().Changed("address") { // cobra's own words for it are no sentence
				return fmt.Errorf("a pod needs an address: give --address, once for each; usage: %s", c.UseLine())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			r.Container, r.Interface = args[0], args[1]
			for _, s := range list {
				a, err := netip.ParseAddr(s)
				if err != nil {
					return misused("--address %q is not an IP address: give one such as 10.244.1.2", s)
				}
				r.Addresses = append(r.Addresses, a)
			}
			if err := oneOf("--attach", r.Attach, control.AttachVeth, control.AttachTUN, control.AttachRouted); err != nil {
				return err
			}
			if m, err := net.ParseMAC(r.MAC); r.MAC != "" && (err != nil || len(m) != 6) {
				return misused("--mac %q is not a MAC address: give six bytes such as 02:00:00:00:00:02", r.MAC)
			}
			if r.MTU < 0 || r.MTU > 65535 {
				return misused("--mtu %d is out of range: give one up to 65535, or leave it out for the node's", r.MTU)
			}
			return t.daemon(c, func(ctx context.Context, client *control.Client) error {
				p, err := client.Attach(ctx, r)
				if err != nil {
					return err
				}
				if t.output == "json" {
					return t.json(p)
				}
				fmt.Fprintf(t.out, "attached %s/%s: %s %s, %s, MTU %d\n", p.Container, p.Interface, p.Attach, p.Device, addresses(p.Addresses), p.MTU)
				return nil
			})
		},
	}
	c.Flags().StringVar(&r.Attach, "attach", control.AttachVeth, "how: veth, tun or routed")
	c.Flags().StringVar(&r.Device, "device", "", "host end of the veth, or name of the TUN to make (default: derived from container and interface)")
	c.Flags().StringVar(&r.MAC, "mac", "", "veth: MAC of the pod's end (default: learned)")
	c.Flags().StringSliceVar(&list, "address", nil, "address of the pod; may be given several times")
	c.Flags().IntVar(&r.MTU, "mtu", 0, "MTU of the pod (default: the node's)")
	c.MarkFlagRequired("address")
	c.RegisterFlagCompletionFunc("attach", cobra.FixedCompletions([]string{control.AttachVeth, control.AttachTUN}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func (t *tool) detach() *cobra.Command {
	return &cobra.Command{
		Use:   "detach CONTAINER INTERFACE",
		Short: "Undo attach; that there is nothing to undo is no failure",
		Args:  takes(2, 2),
		RunE: func(c *cobra.Command, args []string) error {
			return t.daemon(c, func(ctx context.Context, client *control.Client) error {
				err := client.Detach(ctx, control.DetachRequest{Container: args[0], Interface: args[1]})
				if err == nil && t.output == "json" {
					err = t.json(detachedPod{args[0], args[1], true})
				}
				return err
			})
		},
		ValidArgsFunction: t.completePort,
	}
}

// completePort offers what is attached.
func (t *tool) completePort(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	t.daemon(c, func(ctx context.Context, client *control.Client) error {
		ports, err := client.Ports(ctx)
		for _, p := range ports {
			switch {
			case len(args) == 0:
				names = append(names, p.Container)
			case len(args) == 1 && p.Container == args[0]:
				names = append(names, p.Interface)
			}
		}
		return err
	})
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (t *tool) config() *cobra.Command {
	c := group(&cobra.Command{Use: "config", Short: "Check configuration files; needs no daemon"})
	c.AddCommand(&cobra.Command{
		Use:   "check [PATH]",
		Short: "Say all that is wrong with a configuration file, by line (default " + config.DefaultPath + ")",
		Long: `Say all that is wrong with a configuration file, by line (default ` + config.DefaultPath + `).

It looks at the file alone and not at the machine: whether node.address is there, the MTU fits and the devices can be made,
the daemon says when it starts or reloads.`,
		Args: takes(0, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			path := config.DefaultPath
			if len(args) == 1 {
				path = args[0]
			}
			cfg, err := config.Load(path)
			answer := checkedConfig{Path: path, Valid: err == nil, Mistakes: []mistake{}}
			var mistakes config.Errors
			if errors.As(err, &mistakes) {
				for _, m := range mistakes {
					answer.Mistakes = append(answer.Mistakes, mistake(m))
				}
				if t.output == "json" {
					if err := t.json(answer); err != nil {
						return err
					}
				}
				return &reported{mistakes}
			}
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%w: penstockctl config check PATH", err)
			}
			if err != nil {
				return err
			}
			if t.output == "json" {
				return t.json(answer)
			}
			fmt.Fprintf(t.out, "%s is valid in itself; whether the machine fits it (address, MTU, devices) shows when the daemon starts or reloads\n", path)
			if len(cfg.Peers) == 0 {
				fmt.Fprintln(t.out, "it lists no peers: this node is alone, and its pods reach none of another node")
			}
			return nil
		},
	}, &cobra.Command{
		Use:   "example",
		Short: "Print a commented configuration file with every key and its default",
		Args:  takes(0, 0),
		RunE: func(*cobra.Command, []string) error {
			if t.output == "json" {
				return t.json(exampleConfig{string(config.Example)})
			}
			_, err := t.out.Write(config.Example)
			return err
		},
	})
	return c
}

// versionPair is version as JSON; without a daemon that answers it has one key.
type versionPair struct {
	Tool   string `json:"penstockctl"`
	Daemon string `json:"penstockd,omitempty"`
}

func (t *tool) version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of penstockctl, and of the daemon if it answers",
		Args:  takes(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			v := versionPair{Tool: control.Version()}
			err := t.daemon(c, func(ctx context.Context, client *control.Client) error {
				s, err := client.Status(ctx)
				if err == nil {
					v.Daemon = s.Version
				}
				return err
			})
			if t.output == "json" {
				return t.json(v)
			}
			fmt.Fprintln(t.out, "penstockctl", v.Tool)
			if err != nil {
				fmt.Fprintln(t.out, "penstockd  unknown:", err)
				return nil
			}
			fmt.Fprintln(t.out, "penstockd ", v.Daemon)
			return nil
		},
	}
}
