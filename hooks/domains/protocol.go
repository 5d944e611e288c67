// SPDX-License-Identifier: Apache-2.0

package domains

// diskhook-domain is called as `diskhook-domain --connect URI VERB`, with one
// JSON object on its standard input, and answers with one on its standard
// output: that of the verb, or {"error": …} and an exit code other than 0.
// Both programs come from one build; the protocol is no interface for others.

// The verbs, with what they take and answer.
const (
	VerbVersion     = "version"     // nothing → Version
	VerbList        = "list"        // ListRequest → List
	VerbFacts       = "facts"       // DomainRequest → Facts
	VerbXML         = "xml"         // DomainRequest → Definition
	VerbDefine      = "define"      // Definition → Facts
	VerbBlockResize = "blockresize" // ResizeRequest → nothing
)

// Version is whom we talk to. Numbers are libvirt's: 1000000·major +
// 1000·minor + release.
type Version struct {
	URI     string `json:"uri"`
	Driver  string `json:"driver"` // "QEMU"
	Daemon  uint32 `json:"daemon"`
	QEMU    uint32 `json:"qemu"` // 0: not known
	Library uint32 `json:"library"`
}

// ListRequest asks for all domains, active or not.
type ListRequest struct {
	XML bool `json:"xml"` // with their definitions
}

// List is every domain of the host.
type List struct {
	Domains []Facts `json:"domains"`
}

// DomainRequest names a domain by name or UUID.
type DomainRequest struct {
	Domain string `json:"domain"`
}

// Facts is what libvirt says about a domain.
type Facts struct {
	Name        string `json:"name"`
	UUID        string `json:"uuid"`
	State       string `json:"state"` // as virsh domstate names it
	Active      bool   `json:"active"`
	Run         string `json:"run,omitempty"` // of an active domain: every start gives another
	Persistent  bool   `json:"persistent"`
	Autostart   bool   `json:"autostart"`
	ManagedSave bool   `json:"managed_save"`
	Snapshots   int    `json:"snapshots"`
	Checkpoints int    `json:"checkpoints"`
	// XML is the inactive definition, Live that of a running domain; of
	// answers to list with xml only.
	XML  string `json:"xml,omitempty"`
	Live string `json:"live,omitempty"`
}

// Definition is a domain's inactive XML, with its secrets.
type Definition struct {
	XML string `json:"xml"`
}

// ResizeRequest tells a running guest about a disk's new size in bytes.
type ResizeRequest struct {
	Domain string `json:"domain"`
	Target string `json:"target"`
	Size   uint64 `json:"size"`
}

// Failure is how diskhook-domain reports an error.
type Failure struct {
	Error struct {
		Code    string `json:"code"` // failure.Kind.Code; "" is a plain failure
		Message string `json:"message"`
		Hint    string `json:"hint"`
	} `json:"error"`
}
