// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"slices"

	"diskhook/storage/imagecheck"
)

// plan is what is still to be done with an image. It is written with the image
// in one document, and names everything that its stages make.
type plan struct {
	Nonce  string   `json:"nonce"`
	Verb   string   `json:"verb"`
	Stages []string `json:"stages"`
	// Volume is the new volume and Format its kind; Size its virtual size.
	Volume string `json:"volume,omitempty"`
	Format string `json:"format,omitempty"`
	Size   int64  `json:"size,omitempty"`
	// From is the image whose content it gets, wherever that is found.
	From string `json:"from,omitempty"`
	// Here says that From has to be in this repository, removed or not.
	Here bool `json:"here,omitempty"`
	// Base is the snapshot whose content is not copied; Parts are the volumes to
	// copy instead, top first.
	Base  string `json:"base,omitempty"`
	Parts []part `json:"parts,omitempty"`
	// Disk is the virtual disk that a snapshot is of.
	Disk string `json:"disk,omitempty"`
	// Old are volumes that are not needed after this.
	Old []string `json:"old,omitempty"`
	// Left are the new volumes of whoever had the plan before it was taken over: he may
	// still write to them. Those of the one before him have gone; see startOver.
	Left []string `json:"left,omitempty"`
	// Erase is what has to be done with data before it is deleted.
	Erase *erasure `json:"erase,omitempty"`
	// Layers are an imported image's.
	Layers []imagecheck.Layer `json:"layers,omitempty"`
}

// part is a volume of another repository and its copy's id here.
type part struct {
	Of   string `json:"of"`
	Copy string `json:"copy"`
}

// The verbs of plans.
const (
	verbCreate   = "create"
	verbSnapshot = "snapshot"
	verbCopy     = "copy"
	verbImport   = "import"
	verbRemove   = "remove"
	verbResize   = "resize"
	verbOptimize = "optimize"
	verbMerge    = "merge"
	verbRepair   = "repair"
)

// The stages, in the order in which each plan has them. Every one of them may be
// done, or half done, when it is entered.
const (
	stageAllocate = "allocate" // make an empty volume
	stageOverlay  = "overlay"  // make a volume over the base's
	stageCopy     = "copy"     // make a volume with the content of From or Layers
	stageFreeze   = "freeze"   // let nobody write the disk that is snapshotted
	stageSwitch   = "switch"   // let the disk go on in the new volume
	stageParts    = "parts"    // copy the volumes above the base, one by one
	stageLink     = "link"     // lay them over the base that is here
	stageDiffer   = "differ"   // make a volume over the base that is here, with what differs
	stageFlatten  = "flatten"  // read in what the volume below has
	stageRelink   = "relink"   // lay it over what that lies on
	stageSink     = "sink"     // write what the volume has into the one below
	stageGrow     = "grow"
	stageLeaks    = "leaks"   // free what leaked in the image's volume
	stagePublish  = "publish" // let the image point to the new volume
	stageErase    = "erase"   // overwrite or discard what nobody needs any more
	stageSweep    = "sweep"   // remove what nobody needs any more
)

// makes are the volumes of the plan that nobody else knows of yet.
func (p *plan) makes() []string {
	if p == nil {
		return nil
	}
	var ids []string
	if p.Volume != "" {
		ids = append(ids, p.Volume)
	}
	for _, part := range p.Parts {
		ids = append(ids, part.Copy)
	}
	return slices.Concat(ids, p.Old, p.Left)
}

// creates says that the image is nothing before its plan is done.
func (p *plan) creates() bool {
	return p != nil && slices.Contains([]string{verbCreate, verbSnapshot, verbCopy, verbImport}, p.Verb)
}
