package cni

import (
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"
)

// Versions are the versions of the CNI specification that the plugin speaks.
var Versions = version.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0")

// Funcs are the verbs; VERSION is skel's.
var Funcs = skel.CNIFuncs{Add: add, Del: del, Check: check, GC: gc, Status: status}
