package torture

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
)

// counts are what the run has seen, by name. Names with the same first word are printed together.
type counts struct {
	mu sync.Mutex
	m  map[string]map[string]int
}

func (c *counts) add(group, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m[group] == nil {
		c.m[group] = map[string]int{}
	}
	c.m[group][name]++
}

func (c *counts) get(group string, name ...string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, v := range c.m[group] {
		if len(name) == 0 || slices.Contains(name, k) {
			n += v
		}
	}
	return n
}

// line prints a group: "ADD: 120 ok, 30 killed".
func (c *counts) line(group string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var parts []string
	for _, k := range sortedKeys(c.m[group]) {
		parts = append(parts, fmt.Sprintf("%d %s", c.m[group][k], k))
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

func slicesSorted(seq iter.Seq[string]) []string { return slices.Sorted(seq) }
