// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// What follows are block nodes as QEMU's -blockdev takes them: BlockdevOptions
// of qapi/block-core.json, members in the order in which they are written.

type quorumNode struct {
	Driver      string `json:"driver"` // quorum
	NodeName    string `json:"node-name"`
	Threshold   int    `json:"vote-threshold"`
	ReadPattern string `json:"read-pattern,omitempty"`
	Blkverify   bool   `json:"blkverify,omitempty"`
	// Children are names of nodes, or nodes.
	Children []any `json:"children"`
}

type formatNodeOptions struct {
	Driver   string     `json:"driver"`
	NodeName string     `json:"node-name,omitempty"`
	ReadOnly bool       `json:"read-only,omitempty"`
	Cache    *nodeCache `json:"cache,omitempty"`
	File     any        `json:"file"`
	Backing  any        `json:"backing,omitempty"` // qcow2: a node, or null against the header
}

type fileNode struct {
	Driver   string     `json:"driver"`
	Filename string     `json:"filename"`
	AIO      string     `json:"aio,omitempty"`
	ReadOnly bool       `json:"read-only,omitempty"`
	Cache    *nodeCache `json:"cache,omitempty"`
}

type nbdNode struct {
	Driver   string     `json:"driver"`
	Server   nbdServer  `json:"server"`
	Export   string     `json:"export,omitempty"`
	ReadOnly bool       `json:"read-only,omitempty"`
	Cache    *nodeCache `json:"cache,omitempty"`
}

type nbdServer struct {
	Type string `json:"type"`
	Path string `json:"path,omitempty"`
	Host string `json:"host,omitempty"`
	Port string `json:"port,omitempty"`
}

type nodeCache struct {
	Direct  bool `json:"direct"`
	NoFlush bool `json:"no-flush"`
}

// cacheOf is what libvirt makes of driver/@cache (qemuDomainDiskCachemodeFlags):
// the replicas that it does not open are opened like the one that it does.
// Whether each write is flushed, the disk's device decides.
func cacheOf(cache string) (*nodeCache, error) {
	switch cache {
	case "", "default":
		return nil, nil
	case "none", "directsync":
		return &nodeCache{Direct: true}, nil
	case "writeback", "writethrough":
		return &nodeCache{}, nil
	case "unsafe":
		return &nodeCache{NoFlush: true}, nil
	}
	return nil, fmt.Errorf("cache %s is not known", clip(strconv.Quote(cache)))
}

// image builds the node of a replica's layers.
func imageNode(layers []Layer, name string, readOnly bool, driver Driver) (any, error) {
	cache, err := cacheOf(driver.Cache)
	if err != nil {
		return nil, err
	}
	l := layers[0].normal()
	node := &formatNodeOptions{Driver: l.Format, NodeName: name, ReadOnly: readOnly, Cache: cache}
	switch l.Type {
	case "file":
		node.File = &fileNode{"file", l.Source.File, driver.IO, readOnly, cache}
	case "network":
		server, err := nbdServerOf(l.Source)
		if err != nil {
			return nil, err
		}
		node.File = &nbdNode{"nbd", server, l.Source.Name, readOnly, cache}
	}
	switch {
	case len(layers) > 1:
		node.Backing, err = imageNode(layers[1:], "", true, driver)
	case l.Format == "qcow2":
		node.Backing = json.RawMessage("null")
	}
	return node, err
}

func nbdServerOf(s Source) (nbdServer, error) {
	if len(s.Hosts) != 1 {
		return nbdServer{}, errors.New("an NBD source has one host")
	}
	switch h := s.Hosts[0]; or(h.Transport, "tcp") {
	case "unix":
		return nbdServer{Type: "unix", Path: h.Socket}, nil
	case "tcp":
		return nbdServer{Type: "inet", Host: h.Name, Port: or(h.Port, "10809")}, nil
	default:
		return nbdServer{}, fmt.Errorf("NBD over %s", clip(h.Transport))
	}
}

func marshal(node any) (string, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(node)
	return string(bytes.TrimRight(b.Bytes(), "\n")), err
}

// readQuorumNode reads a -blockdev that InlineQuorum wrote, or an operator in
// the same manner: its name, and those of its children.
func readQuorumNode(value string) (name string, children []string, ok bool) {
	var node struct {
		Driver   string            `json:"driver"`
		NodeName string            `json:"node-name"`
		Children []json.RawMessage `json:"children"`
	}
	if json.Unmarshal([]byte(value), &node) != nil || node.Driver != "quorum" || node.NodeName == "" {
		return "", nil, false
	}
	for _, c := range node.Children {
		var by string
		if json.Unmarshal(c, &by) != nil {
			var inner struct {
				NodeName string `json:"node-name"`
			}
			_ = json.Unmarshal(c, &inner) // a child that has no name
			by = inner.NodeName
		}
		children = append(children, by)
	}
	return node.NodeName, children, true
}
