package cni

import (
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/penstock-net/penstock/docs/pages"
)

// TestManualKeys: docs/cni.md has every key of the plugin and every capability, and no key besides.
func TestManualKeys(t *testing.T) {
	_, text, ok := strings.Cut(pages.Open(t, "cni.md").Text(), "\n## Keys\n")
	text, _, _ = strings.Cut(text, "\n## ")
	if !ok {
		t.Fatal("docs/cni.md has no section Keys")
	}
	want := []string{"ipam", "dns"} // of the keys of the specification those that this plugin reads
	for _, k := range jsonKeys(reflect.TypeOf(netConf{})) {
		if k != "runtimeConfig" && k != "args" && !strings.HasPrefix(k, "cni.dev/") { // the runtime's
			want = append(want, k)
		}
	}
	var got []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(text, -1) {
		got = append(got, m[1])
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("docs/cni.md has the keys %q, the plugin %q", got, want)
	}
	of := jsonKeys(reflect.TypeOf(types.PluginConf{}))
	for _, k := range []string{"ipam", "dns"} {
		if !slices.Contains(of, k) {
			t.Errorf("%s is no key of the specification: %q", k, of)
		}
	}
	_, capabilities, _ := strings.Cut(text, "\nCapabilities: ")
	for _, k := range jsonKeys(reflect.TypeOf(netConf{}.RuntimeConfig)) {
		if !strings.Contains(capabilities, "`"+k+"`") {
			t.Errorf("docs/cni.md lacks the capability %s", k)
		}
	}
}

// jsonKeys are a struct's own.
func jsonKeys(of reflect.Type) (keys []string) {
	for i := range of.NumField() {
		if name, _, _ := strings.Cut(of.Field(i).Tag.Get("json"), ","); name != "" && name != "-" {
			keys = append(keys, name)
		}
	}
	return keys
}
