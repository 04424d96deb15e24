package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"go.yaml.in/yaml/v3"
)

// leftOut stands where something was.
const leftOut = "(left out)"

var (
	secretKey = regexp.MustCompile(`(?i)pass(word|wd|phrase)?$|secret|token|credential|private|key$|auth`)
	userInfo  = regexp.MustCompile(`://[^/@\s]*@`)
)

// bundleFiles adds the configuration and our CNI list, without what is nobody's business.
func (b *bundle) bundleFiles(configPath, cniDir string) {
	raw, err := os.ReadFile(configPath)
	clean := ""
	if err == nil {
		clean, err = redactYAML(raw)
	}
	b.text("penstock.yaml", clean, err)
	names, err := (&cniFiles{confDir: cniDir}).lists()
	if err != nil {
		b.text("cni.json", "", err)
		return
	}
	lists := map[string]any{}
	for _, name := range names {
		l, err := readList(filepath.Join(cniDir, name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil: // not what it says: a parser's error may quote the file
			lists[name] = "cannot be read, or is not JSON"
		default:
			lists[name] = redactList(l)
		}
	}
	b.value("cni.json", lists, nil)
}

// redactYAML writes a file anew without comments and without the values of keys that sound like secrets.
func redactYAML(raw []byte) (string, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		return "", errors.New("it is not YAML, so nothing can be left out of it; penstockctl config check says where")
	}
	redactNode(&doc, 0)
	var out bytes.Buffer
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	if err := e.Encode(&doc); err != nil {
		return "", errors.New("it cannot be written anew")
	}
	return out.String(), nil
}

func redactNode(n *yaml.Node, depth int) {
	n.HeadComment, n.LineComment, n.FootComment = "", "", ""
	if n.Kind == yaml.ScalarNode {
		n.Value = userInfo.ReplaceAllString(n.Value, "://"+leftOut+"@")
	}
	if depth > 100 {
		*n = yaml.Node{Kind: yaml.ScalarNode, Value: leftOut}
		return
	}
	for i, c := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 1 && secretKey.MatchString(n.Content[i-1].Value) {
			n.Content[i] = &yaml.Node{Kind: yaml.ScalarNode, Value: leftOut}
			continue
		}
		redactNode(c, depth+1)
	}
}

// redactList keeps of a list only what is ours or harmless: the names of its plugins, and those keys of penstock itself that
// docs/cni.md explains. A list without penstock is named, and no more.
func redactList(l cniList) any {
	ours := false
	var plugins []any
	for _, p := range l.plugins() {
		kept := map[string]any{}
		if s, ok := p["type"].(string); ok {
			kept["type"] = s
		}
		if p["type"] == pluginName {
			ours = true
			for _, key := range []string{"attach", "socket", "mtu", "routes", "dns", "capabilities"} {
				if v, ok := p[key]; ok {
					kept[key] = v
				}
			}
			if ipam, ok := p["ipam"].(map[string]any); ok {
				kept["ipam"] = map[string]any{"type": ipam["type"]}
			}
		}
		plugins = append(plugins, kept)
	}
	if !ours {
		return "another plugin's, not looked into"
	}
	return map[string]any{"name": l["name"], "cniVersion": l["cniVersion"], "plugins": plugins}
}
