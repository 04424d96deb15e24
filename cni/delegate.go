package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

// Delegation to an ipam plugin (specification, section 4): the same environment but for CNI_COMMAND, the same standard input. The
// library's own package for it, invoke, links a tracing library and net/http, whose start costs each ADD more than this file
// (docs/decisions/0011-lean-plugin.md).

const (
	busyTries   = 6                      // a plugin that is being installed just now cannot be run: "text file busy"
	outputDelay = 500 * time.Millisecond // for the output of a plugin that has ended, and left a child behind that holds it
)

// busyPause is between two tries. Tests shorten it.
var busyPause = time.Second

// decodeResult reads a result of any version. One that names none has that of the configuration (CNI issue 895).
func decodeResult(conf, result []byte) (*current.Result, error) {
	all := map[string]any{}
	if err := json.Unmarshal(result, &all); err != nil {
		return nil, err
	}
	if all == nil { // of "null"
		all = map[string]any{}
	}
	v, _ := all["cniVersion"].(string)
	if v == "" {
		var err error
		if v, err = new(version.ConfigDecoder).Decode(conf); err != nil {
			return nil, err
		}
		all["cniVersion"] = v
	}
	dropNulls(all)
	result, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	r, err := create.Create(v, result)
	if err != nil {
		return nil, err
	}
	return current.NewResultFromResult(r)
}

// dropNulls takes what is null out of a result's lists, which the library turns into pointers to nothing. Interfaces are counted.
func dropNulls(result map[string]any) {
	for key, v := range result {
		list, ok := v.([]any)
		switch {
		case !ok:
		case strings.EqualFold(key, "interfaces"):
			for i := range list {
				if list[i] == nil {
					list[i] = map[string]any{}
				}
			}
		default:
			result[key] = slices.DeleteFunc(list, func(x any) bool { return x == nil })
		}
	}
}

// delegate calls a verb of an ipam plugin, and returns what it printed. An error that the plugin has printed keeps its code. What
// it writes to standard error goes to ours, where nothing else tells of it. It is killed when ctx ends.
func delegate(ctx context.Context, plugin, verb string, stdin []byte) ([]byte, error) {
	path, err := findPlugin(plugin)
	if err != nil {
		return nil, err
	}
	var stdout, stderr bytes.Buffer
	for try := 1; ; try++ {
		c := exec.CommandContext(ctx, path)
		c.Env = append(os.Environ(), "CNI_COMMAND="+verb) // the last of a name holds
		c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(stdin), &stdout, &stderr
		c.WaitDelay = outputDelay
		err = c.Run()
		if !errors.Is(err, unix.ETXTBSY) || try == busyTries {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(busyPause):
			continue
		}
		break
	}
	switch {
	case err == nil || errors.Is(err, exec.ErrWaitDelay): // the latter: it has ended well
		os.Stderr.Write(stderr.Bytes())
		return stdout.Bytes(), nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("it did not end in time: %w", ctx.Err())
	}
	return nil, pluginError(err, stdout.Bytes(), stderr.Bytes())
}

// pluginError finds out why a plugin has failed.
func pluginError(err error, stdout, stderr []byte) error {
	var said types.Error
	switch {
	case len(stdout) == 0 && len(stderr) == 0:
		return fmt.Errorf("it failed and did not say why: %w", err)
	case len(stdout) == 0:
		return fmt.Errorf("it failed and said %q: %w", stderr, err)
	case json.Unmarshal(stdout, &said) != nil || said.Code == 0 && said.Msg == "":
		return fmt.Errorf("it failed and printed %q, which is no error of CNI: %w", stdout, err)
	}
	return &said
}

// findPlugin looks a plugin up where the runtime says that they are.
func findPlugin(name string) (string, error) {
	path := os.Getenv("CNI_PATH")
	switch {
	case name == "" || strings.ContainsRune(name, filepath.Separator):
		return "", fmt.Errorf("%q is not the name of a plugin", name)
	case path == "":
		return "", errors.New("it cannot be found: CNI_PATH is empty")
	}
	for _, dir := range filepath.SplitList(path) {
		file := filepath.Join(dir, name)
		if fi, err := os.Stat(file); err == nil && fi.Mode().IsRegular() {
			return file, nil
		}
	}
	return "", fmt.Errorf("it is not found in CNI_PATH %s: install it there", path)
}
