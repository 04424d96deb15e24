// Command penstock is the CNI plugin: its file name is its CNI type. A runtime calls it with CNI_COMMAND; what it does is in
// package cni.
package main

import (
	"github.com/containernetworking/cni/pkg/skel"

	"github.com/penstock-net/penstock/cni"
	"github.com/penstock-net/penstock/forwarder/control"
)

func main() {
	skel.PluginMainFuncs(cni.Funcs, cni.Versions, "penstock "+control.Version()+", the CNI plugin of penstockd")
}
