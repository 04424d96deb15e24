// Command penstock is the CNI plugin: its file name is its CNI type. A runtime calls it with CNI_COMMAND; what it does is in
// package cni.
//
//	penstock adopt [--socket PATH]   bring the queues of tun pods back to a daemon that was restarted
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/penstock-net/penstock/cni"
	"github.com/penstock-net/penstock/cni/adopt"
	"github.com/penstock-net/penstock/forwarder/control"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "adopt" && os.Getenv("CNI_COMMAND") == "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		status := adopt.Run(ctx, os.Args[2:], os.Stdout, os.Stderr)
		stop()
		os.Exit(status)
	}
	skel.PluginMainFuncs(cni.Funcs, cni.Versions, "penstock "+control.Version()+", the CNI plugin of penstockd")
}
