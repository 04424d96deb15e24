//go:build race

package table

// The race detector makes everything ten times slower and memory larger.
func init() { million = 50_000 }
