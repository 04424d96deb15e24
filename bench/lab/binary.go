package lab

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// daemonProgram is the penstockd to run: that of the environment variable PENSTOCKD, else one built from this
// module, once a process. LAB_RACE=1 builds it with the race detector.
var daemonProgram = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("PENSTOCKD"); path != "" {
		return filepath.Abs(path)
	}
	return buildGo("penstockd")
})

// pluginProgram is the CNI plugin: the file penstock beside PENSTOCKD, else one built from this module.
var pluginProgram = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("PENSTOCKD"); path != "" {
		beside, err := filepath.Abs(filepath.Join(filepath.Dir(path), "penstock"))
		if err != nil {
			return "", err
		}
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	return buildGo("penstock")
})

// buildGo makes one of this module's programs.
func buildGo(name string) (string, error) {
	return build(name, "go", func(to string) []string {
		args := []string{"build", "-o", to}
		if os.Getenv("LAB_RACE") != "" {
			args = append(args, "-race")
		}
		return append(args, "./cmd/"+name)
	})
}

// build makes a program by a compiler that is run in the module's root and writes where args is told.
func build(name, compiler string, args func(to string) []string) (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "penstock-lab")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("lab: directory for %s: %w", name, err)
	}
	forgetOld(dir)
	tmp, err := os.CreateTemp(dir, "build-")
	if err != nil {
		return "", fmt.Errorf("lab: file for %s: %w", name, err)
	}
	tmp.Close()
	defer os.Remove(tmp.Name())
	cmd := exec.Command(compiler, args(tmp.Name())...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("lab: %s does not build: %w\n%s", name, err, out)
	}
	// Named after its contents: test processes that run side by side share it and never write into a file
	// that another one executes.
	sum, err := hashFile(tmp.Name())
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name+"-"+sum[:16])
	if err := os.Chmod(tmp.Name(), 0o755); err != nil {
		return "", err
	}
	return path, os.Rename(tmp.Name(), path)
}

// forgetOld removes builds that no test has made for a day.
func forgetOld(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > 24*time.Hour {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// moduleRoot is the directory of go.mod above the working directory, which for a test is its package.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("lab: no go.mod above the working directory: run inside the module or set PENSTOCKD")
		}
		dir = parent
	}
}
