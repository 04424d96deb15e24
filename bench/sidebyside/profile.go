package main

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/penstock-net/penstock/bench/lab"
	"golang.org/x/sync/errgroup"
)

const (
	profileTop = 30 // functions in the short list
	profileMax = 8  // seconds: the lab's client of the debug listener gives up after ten
)

// profile puts each load on its cell's network and takes a CPU profile of both daemons meanwhile: node-a's mostly
// encapsulates, node-b's decapsulates. What it delivers is shown but compared with nothing: being profiled costs time.
func profile(ctx context.Context, o options, cells []cell, n *networks) error {
	dir := filepath.Join(o.dir, "profiles")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("directory for the profiles: %w", err)
	}
	o.seconds = math.Ceil(min(max(o.seconds, 1), profileMax))
	for _, c := range cells {
		if c.Subject.Role != lab.Penstock || c.Burden.Shape == idle {
			continue
		}
		err := profileCell(ctx, o, n, c, dir)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.name(), err)
		}
	}
	fmt.Printf("Profiles and their top %d functions are in %s; look closer with: go tool pprof -http=: FILE.pprof\n", profileTop, dir)
	return nil
}

func profileCell(ctx context.Context, o options, n *networks, c cell, dir string) error {
	network, err := n.get(ctx, c.Subject, c)
	if err != nil {
		return err
	}
	var s sample
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		s, err = measure(ctx, network, c.Burden, o, o.seconds+0.2)
		return err
	})
	if pause(ctx, warmUp) == nil {
		for _, node := range network.lab.Nodes {
			g.Go(func() error {
				base := filepath.Join(dir, strings.ReplaceAll(c.name(), "/", "_")+"_"+node.Name)
				return takeProfile(node, base, int(o.seconds))
			})
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	m := metrics[c.Burden.Shape][0]
	fmt.Printf("%s  %s %s\n", padded(c.name(), 34), m.Title, m.Write(s[m.Name]))
	return nil
}

// takeProfile writes BASE.pprof and BASE.txt.
func takeProfile(node *lab.Node, base string, seconds int) error {
	code, body, err := node.Daemon.Get(fmt.Sprintf("/debug/pprof/profile?seconds=%d", seconds))
	if err != nil {
		return fmt.Errorf("profile of %s: %w", node.Name, err)
	}
	if code != http.StatusOK {
		return fmt.Errorf("profile of %s: status %d: %s", node.Name, code, body)
	}
	if err := os.WriteFile(base+".pprof", body, 0o644); err != nil {
		return err
	}
	var list []byte
	for _, order := range []string{"-flat", "-cum"} { // flat shows the system calls, cum who makes them
		top, err := exec.Command("go", "tool", "pprof", "-top", order, fmt.Sprintf("-nodecount=%d", profileTop), base+".pprof").Output()
		if err != nil {
			return fmt.Errorf("go tool pprof %s.pprof: %w", base, err)
		}
		list = append(append(list, top...), '\n')
	}
	return os.WriteFile(base+".txt", list, 0o644)
}
