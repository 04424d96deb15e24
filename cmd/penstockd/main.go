// Command penstockd is the Penstock daemon: one a node, it carries pod traffic between nodes.
//
//	penstockd [--config PATH] [--log-level LEVEL]   run until SIGTERM; SIGHUP reloads the configuration
//	penstockd [--config PATH] check                 say what is wrong with the configuration, and end
//	penstockd [--config PATH] --cleanup             remove all that a daemon made in the kernel, and end
//	penstockd --version
//
// Exit status: 0 done, 1 failed, 2 wrong usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/penstock-net/penstock/forwarder/config"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/daemon"
)

// What --help prints around the flags; the man page is made of it.
const (
	usageText = `usage: penstockd [flags]         run
       penstockd [flags] check   check the configuration, and end

`
	usageMore = `
It needs CAP_NET_ADMIN, CAP_NET_RAW and /dev/net/tun. SIGTERM stops it and leaves routes, devices and rules to its successor;
SIGHUP reloads the configuration, entirely or not at all. Exit status: 0 done, 1 failed, 2 wrong usage.
`
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr *os.File) int {
	var o daemon.Options
	o.Log = stderr
	flags := flag.NewFlagSet("penstockd", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.Config, "config", config.DefaultPath, "configuration file `PATH`")
	flags.StringVar(&o.Level, "log-level", "info", "log `LEVEL`: debug, info, warn or error; penstockctl loglevel changes it later")
	cleanup := flags.Bool("cleanup", false, "remove all that a daemon with this configuration made in the kernel, and end")
	version := flags.Bool("version", false, "print the version, and end")
	usage := func(w io.Writer) {
		fmt.Fprint(w, usageText)
		flags.SetOutput(w)
		flags.PrintDefaults()
		fmt.Fprint(w, usageMore)
	}
	err := flags.Parse(args)
	// Flags may stand behind the word check as well.
	check := err == nil && flags.Arg(0) == "check"
	if check {
		err = flags.Parse(flags.Args()[1:])
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
		usage(stdout)
		return 0
	case err != nil:
		return misused(stderr, err.Error())
	case flags.NArg() > 0:
		return misused(stderr, fmt.Sprintf("%q is not something penstockd does", flags.Arg(0)))
	case check && *cleanup:
		return misused(stderr, "check and --cleanup exclude each other")
	case *version:
		fmt.Fprintln(stdout, "penstockd", control.Version())
		return 0
	}

	ctx := context.Background()
	switch {
	case check:
		err = daemon.Check(o.Config)
		var mistakes config.Errors
		if errors.As(err, &mistakes) { // as penstockctl config check prints them
			fmt.Fprintln(stderr, "penstockd:", mistakes.Report())
			return 1
		}
		if err == nil {
			fmt.Fprintf(stdout, "%s is valid in itself; whether the machine fits it (address, MTU, devices) shows at the start\n", o.Config)
		}
	case *cleanup:
		ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
		err = daemon.Cleanup(ctx, o)
		stop()
	default:
		err = daemon.Run(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(stderr, "penstockd:", err)
		return 1
	}
	return 0
}

func misused(stderr io.Writer, what string) int {
	fmt.Fprintf(stderr, "penstockd: %s; penstockd --help shows the usage\n", what)
	return 2
}
