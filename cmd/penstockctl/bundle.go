package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock-net/penstock/forwarder/config"
	"github.com/penstock-net/penstock/forwarder/control"
)

func (t *tool) supportBundle() *cobra.Command {
	var file, configPath, cniDir string
	c := &cobra.Command{
		Use:   "support-bundle",
		Short: "Write what is needed to judge this node from afar into one .tar.gz",
		Long: `Write what is needed to judge this node from afar into one .tar.gz.

It holds the daemon's answers, metrics, goroutines and profiles, doctor's report, the configuration, our own nft tables, devices,
addresses, routes and neighbours, the sysctls that matter, and versions. What looks like a secret is left out of the configuration, and
so are its comments; of the CNI lists only ours is taken, and of the plugins in it only what we understand: other plugins keep tokens
there. Names and addresses of pods, peers and nodes are in it. The file can be read by its owner alone.

What cannot be had is named in errors.txt; the exit status is then 5.`,
		Args: takes(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			if !c.Flags().Changed("config") {
				configPath = "" // nobody says that the daemon's is there
			}
			return t.writeBundle(c.Context(), file, configPath, cniDir)
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "where to write it; - is standard output (default: penstock-NODE-TIME.tar.gz here)")
	c.Flags().StringVar(&configPath, "config", config.DefaultPath, "the daemon's configuration file, if the daemon cannot be asked")
	c.Flags().StringVar(&cniDir, "conf-dir", "/etc/cni/net.d", "where the container runtime looks for CNI lists")
	return c
}

// bundle is a support bundle in the making. A part that fails leaves a line in errors, and the others go on.
type bundle struct {
	parts []part
	lacks []lack
}

// part is a file of the archive.
type part struct{ name, content string }

// archive is all parts in a folder.
func (b *bundle) archive(folder string, made time.Time) (*bytes.Buffer, error) {
	var archive bytes.Buffer
	z := gzip.NewWriter(&archive)
	out := tar.NewWriter(z)
	for _, p := range b.parts {
		if err := out.WriteHeader(&tar.Header{Name: folder + "/" + p.name, Mode: 0o600, Size: int64(len(p.content)), ModTime: made}); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(out, p.content); err != nil {
			return nil, err
		}
	}
	return &archive, cmp.Or(out.Close(), z.Close())
}

// bundleProbing is how long a bundle waits for peers that do not answer: who has thousands of them does not wait for a support bundle.
const bundleProbing = 30 * time.Second

// lack is a part that could not be had, and why.
type lack struct{ part, why string }

// lines is a line for each part that could not be had.
func (b *bundle) lines() []string {
	list := []string{}
	for _, l := range b.lacks {
		list = append(list, l.part+": "+l.why)
	}
	return list
}

// sentence names the parts that could not be had, those of one reason together.
func (b *bundle) sentence() string {
	var reasons []string
	parts := map[string][]string{}
	for _, l := range b.lacks {
		if parts[l.why] == nil {
			reasons = append(reasons, l.why)
		}
		parts[l.why] = append(parts[l.why], l.part)
	}
	for i, why := range reasons {
		reasons[i] = strings.Join(parts[why], ", ") + ": " + why
	}
	return fmt.Sprintf("the bundle lacks %s, which its errors.txt names: %s", counted(len(b.lacks), "part"), strings.Join(reasons, "; "))
}

// Parts that a daemon has, but for the first, status.json, which is asked for alone.
var (
	answerParts = []string{"peers.json", "pods.json", "ports.json", "ipam.json", "routes.json", "drops.json", "process.txt"}
	debugParts  = []string{"metrics.txt", "goroutines.txt", "heap.pb.gz", "cpu.pb.gz"}
)

// without names parts that nobody tried to get, as something before has failed.
func (b *bundle) without(parts []string, err error) {
	for _, p := range parts {
		b.text(p, "", err)
	}
}

// bundleMade is support-bundle as JSON.
type bundleMade struct {
	File    string   `json:"file"`
	Missing []string `json:"missing"` // parts that could not be had, and why
}

func (t *tool) writeBundle(ctx context.Context, file, configPath, cniDir string) error {
	if dir := filepath.Dir(file); file != "" && file != "-" { // before anything is gathered, which takes a while
		switch fi, err := os.Stat(dir); {
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("the bundle cannot be written: the directory %s does not exist: make it, or give another with --file", dir)
		case err == nil && !fi.IsDir():
			return fmt.Errorf("the bundle cannot be written: %s is no directory: give another with --file", dir)
		}
	}
	// The daemon's answers come first: whoever breaks doctor off has these.
	b, daemonPath := &bundle{}, configPath
	t.bundleDaemon(ctx, b, &daemonPath)
	report := t.examine(ctx, configPath, cniDir, nil, bundleProbing)
	b.value("doctor.json", report, nil)
	name := "penstock-" + cmp.Or(report.Node, "node") + "-" + report.Time.Format("20060102T150405Z")
	file = cmp.Or(file, name+".tar.gz")
	b.bundleFiles(cmp.Or(daemonPath, config.DefaultPath), cniDir)
	b.bundleHost()
	b.text("version.txt", versions(), nil)
	if len(b.lacks) > 0 {
		b.text("errors.txt", strings.Join(b.lines(), "\n")+"\n", nil)
	}
	archive, err := b.archive(name, report.Time)
	if err != nil {
		return fmt.Errorf("the bundle cannot be made: %w", err)
	}
	if file == "-" {
		if _, err := t.out.Write(archive.Bytes()); err != nil {
			return fmt.Errorf("the bundle cannot be written: %w", err)
		}
	} else {
		if err := writeAtomically(file, archive, 0o600); err != nil {
			return err
		}
		if t.output == "json" {
			if err := t.json(bundleMade{file, b.lines()}); err != nil {
				return err
			}
		} else {
			fmt.Fprintf(t.out, "wrote %s\n", file)
		}
	}
	if len(b.lacks) > 0 {
		return &verdict{exitWarnings, b.sentence()}
	}
	return nil
}

// text adds a file, or what kept it from being had.
func (b *bundle) text(name, content string, err error) {
	if err != nil {
		b.lacks = append(b.lacks, lack{name, err.Error()})
	}
	if content != "" || err == nil {
		b.parts = append(b.parts, part{name, content})
	}
}

func (b *bundle) value(name string, v any, err error) {
	if err != nil {
		b.text(name, "", err)
		return
	}
	j, err := json.MarshalIndent(v, "", "  ")
	b.text(name, string(j)+"\n", err)
}

// bundleDaemon asks the daemon for all it shows, and finds out where its configuration is.
func (t *tool) bundleDaemon(ctx context.Context, b *bundle, configPath *string) {
	ctx, cancel := control.WithTimeout(ctx, t.timeout)
	defer cancel()
	client := control.New(t.socket)
	s, err := client.Status(ctx)
	b.value("status.json", s, err)
	if err != nil {
		b.without(slices.Concat(answerParts, debugParts), err) // the others would say the same
		return
	}
	*configPath = s.Config
	ask(b, ctx, "peers.json", client.Peers)
	ask(b, ctx, "pods.json", client.Pods)
	ask(b, ctx, "ports.json", client.Ports)
	ask(b, ctx, "ipam.json", client.IPAM)
	ask(b, ctx, "routes.json", client.Routes)
	ask(b, ctx, "drops.json", client.Drops)
	if pid, err := client.Process(ctx); err != nil {
		b.text("process.txt", "", err)
	} else {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		limits, err2 := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
		b.text("process.txt", string(status)+"\n"+string(limits), cmp.Or(err, err2))
	}
	c, err := config.LoadRegular(s.Config)
	if err != nil {
		b.without(debugParts, fmt.Errorf("where the daemon's debug listener is, its configuration would say: %w", err))
		return
	}
	if c.Debug.Listen == "" {
		b.without(debugParts, errors.New("debug.listen is off"))
		return
	}
	for _, p := range [][2]string{{"metrics.txt", "/metrics"}, {"goroutines.txt", "/debug/pprof/goroutine?debug=2"}, {"heap.pb.gz", "/debug/pprof/heap"}, {"cpu.pb.gz", "/debug/pprof/profile?seconds=2"}} {
		text, err := fetch(ctx, "http://"+c.Debug.Listen+p[1])
		b.text(p[0], text, err)
	}
}

func ask[T any](b *bundle, ctx context.Context, name string, get func(context.Context) (T, error)) {
	v, err := get(ctx)
	b.value(name, v, err)
}

// maxPart bounds what one part may have.
const maxPart = 64 << 20

func fetch(ctx context.Context, url string) (string, error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	a, err := http.DefaultClient.Do(q)
	if err != nil {
		return "", err
	}
	defer a.Body.Close()
	body, err := io.ReadAll(io.LimitReader(a.Body, maxPart))
	if err == nil && a.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s answers %s", url, a.Status)
	}
	return string(body), err
}
