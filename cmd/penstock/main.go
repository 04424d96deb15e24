// Command penstock is the CNI plugin: its file name is its CNI type. A runtime calls it with CNI_COMMAND; what it does is in
// package cni.
//
// Called by hand as `penstock adopt` it hands the queues of pods' TUNs to a daemon that was restarted: the daemon itself may not
// enter pods' namespaces. The daemon's unit does that (ExecStartPost=+).
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/containernetworking/cni/pkg/skel"

	_ "github.com/penstock-net/penstock/cmd/penstock/quiet"
	"github.com/penstock-net/penstock/cni"
	"github.com/penstock-net/penstock/cni/adopt"
	"github.com/penstock-net/penstock/forwarder/control"
)

func main() {
	if os.Getenv("CNI_COMMAND") == "" && len(os.Args) > 1 && os.Args[1] == "adopt" {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		code := adopt.Run(ctx, os.Args[2:], os.Stdout, os.Stderr)
		stop()
		os.Exit(code)
	}
	skel.PluginMainFuncs(cni.Funcs, cni.Versions, "penstock "+control.Version()+", the CNI plugin of penstockd")
}
