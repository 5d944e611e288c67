// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"

	"diskhook/storage/imagecheck"
)

// Node is a node of QEMU's block graph, as `-blockdev` and QMP's blockdev-add
// take it (BlockdevOptions in QEMU's qapi/block-core.json). This file is the
// one place that spells them.
//
// Every driver is named and every chain ends in "backing": null, so that QEMU
// probes nothing and follows no header.
type Node struct {
	Driver   string `json:"driver"`
	NodeName string `json:"node-name,omitempty"` // at most 31 bytes
	ReadOnly bool   `json:"read-only,omitempty"`
	Cache    *Cache `json:"cache,omitempty"`

	// Of the protocol drivers file and host_device.
	Filename string `json:"filename,omitempty"`
	AIO      string `json:"aio,omitempty"`

	// Of the protocol driver nbd.
	Server *Server `json:"server,omitempty"`
	Export string  `json:"export,omitempty"`
	// ReconnectDelay is how many seconds requests wait for a connection that
	// broke, before they fail.
	ReconnectDelay int `json:"reconnect-delay,omitempty"`

	// Of the formats. Size shows only the beginning of what is longer.
	Size    int64           `json:"size,omitempty"`
	File    any             `json:"file,omitempty"` // *Node, or the name of one
	Backing json.RawMessage `json:"backing,omitempty"`

	// Of the driver quorum.
	Children    []any  `json:"children,omitempty"` // each as File
	Threshold   int    `json:"vote-threshold,omitempty"`
	ReadPattern string `json:"read-pattern,omitempty"`
}

// Cache is how a node uses the host's page cache (BlockdevCacheOptions).
type Cache struct {
	Direct  bool `json:"direct"`
	NoFlush bool `json:"no-flush"`
}

// Server is where an NBD server listens (SocketAddress).
type Server struct {
	Type string `json:"type"` // "inet" or "unix"
	Host string `json:"host,omitempty"`
	Port string `json:"port,omitempty"` // a string in QEMU's schema
	Path string `json:"path,omitempty"`
}

// Opening is how a replica is opened.
type Opening struct {
	ReadOnly bool
	// Direct goes past the host's page cache, with Linux' native AIO; where a
	// file system has no direct I/O it must be false.
	Direct bool
}

// QuorumNode is the name of the node that votes. Replicas' nodes have their
// ids as names, so that an event's node-name is the replica.
const QuorumNode = "quorum"

// ReplicaNode is the tree of one replica; the node at its top is called as the
// replica. Only that one is opened for writing.
func (s *Set) ReplicaNode(r Replica, o Opening) (*Node, error) {
	backing := json.RawMessage("null")
	for i := len(r.Chain) - 1; ; i-- {
		name := r.ID
		if i > 0 {
			name += "-" + strconv.Itoa(i)
		}
		n := r.Chain[i].node(name, Opening{ReadOnly: o.ReadOnly || i > 0, Direct: o.Direct})
		if r.Chain[i].Format == imagecheck.QCOW2 {
			n.Backing = backing
		} else if i == 0 && r.Chain[i].Type != File {
			n.Size = s.Size
		}
		if i == 0 {
			return n, nil
		}
		var err error
		if backing, err = n.encode(); err != nil {
			return nil, fmt.Errorf("%s: %w", r, err)
		}
	}
}

// node is the format over the protocol.
func (l Layer) node(name string, o Opening) *Node {
	file := l.protocol(name+"-file", o)
	return &Node{Driver: l.Format, NodeName: name, ReadOnly: o.ReadOnly, Cache: file.Cache, File: file}
}

func (l Layer) protocol(name string, o Opening) *Node {
	n := &Node{NodeName: name, ReadOnly: o.ReadOnly, Cache: &Cache{Direct: o.Direct}}
	switch l.Type {
	case NBD:
		n.Driver, n.Export, n.Cache = "nbd", l.Export, nil
		n.Server = &Server{Type: "unix", Path: l.Socket}
		if l.Socket == "" {
			n.Server = &Server{Type: "inet", Host: l.Host, Port: strconv.Itoa(l.Port)}
		}
		return n
	case Block:
		n.Driver = "host_device"
	default:
		n.Driver = "file"
	}
	n.Filename, n.AIO = l.Path, "threads"
	if o.Direct {
		n.AIO = "native" // which QEMU takes with direct I/O only
	}
	return n
}

// ProxyNode is a replica that a daemon of its own shows on a unix socket, as
// an NBD export called as the replica.
func (s *Set) ProxyNode(id, socket string) *Node {
	server := &Server{Type: "unix", Path: socket}
	return &Node{Driver: imagecheck.Raw, NodeName: id, Size: s.Size, File: &Node{Driver: "nbd", NodeName: id + "-file", Server: server, Export: id}}
}

// Node is the node that votes over replicas which have nodes already.
func (s *Set) Node(ids []string) *Node {
	n := &Node{Driver: "quorum", NodeName: QuorumNode, Threshold: s.Threshold, ReadPattern: s.ReadPattern}
	for _, id := range ids {
		n.Children = append(n.Children, id)
	}
	return n
}

// Tree is Node with the replicas' trees in it, for tools that take one
// argument.
func (s *Set) Tree(replicas []*Node) *Node {
	n := s.Node(nil)
	for _, r := range replicas {
		n.Children = append(n.Children, r)
	}
	return n
}

// JSON is the argument of -blockdev and of blockdev-add.
func (n *Node) JSON() (string, error) {
	b, err := n.encode()
	return string(b), err
}

// Pseudo is the tree as a file name for qemu-img and qemu-io.
func (n *Node) Pseudo() (string, error) {
	text, err := n.JSON()
	return "json:" + text, err
}

// encode is json.Marshal without the escapes meant for HTML.
func (n *Node) encode() (json.RawMessage, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	err := enc.Encode(n)
	return bytes.TrimSpace(buf.Bytes()), err
}
