// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"iter"
	"slices"

	"diskhook/storage/failure"
	"diskhook/storage/thin/metadata"
)

// VerifyAhead reads back what was written of the volumes that are coming: written lists
// the mappings of one of them. A difference is a failure.Problems, as in Verify.
func (p Plan) VerifyAhead(written func(id uint32) iter.Seq2[metadata.Run, error]) error {
	return same(p.coming, written)
}

// VerifyForeseen reads back what WriteForeseen wrote, as VerifyAhead does.
func (p Plan) VerifyForeseen(written func(id uint32) iter.Seq2[metadata.Run, error]) error {
	return same(p.foreseen, written)
}

func same(volumes []Attached, written func(id uint32) iter.Seq2[metadata.Run, error]) error {
	for _, a := range volumes {
		if err := a.same(written(a.Volume.Number)); err != nil {
			return err
		}
	}
	return nil
}

// same compares what was written of a volume with what it maps.
func (a Attached) same(written iter.Seq2[metadata.Run, error]) error {
	rest := runs(a.Mapping.Runs)
	for got, err := range written {
		if err != nil {
			return err
		}
		if want, ok := rest.next(); !ok || got != want {
			return a.differs()
		}
	}
	if len(rest) != 0 {
		return a.differs()
	}
	return nil
}

func (a Attached) differs() error {
	return failure.New(failure.Problems, "volume %s: what was written of it to metadata was read back otherwise", a.Volume.Name)
}

// Verify reads back what was written for the attached volumes, what the pool as a whole
// will know, and that it knows the volumes that were written ahead, of which VerifyAhead
// and VerifyForeseen have read the mappings. A difference is a failure.Problems: the
// device does not keep what it is given.
func (p Plan) Verify(written *metadata.Reader) error {
	sb := written.Superblock()
	if sb.TransactionID != p.superblock.TransactionID || sb.DataBlocks != p.superblock.DataBlocks || sb.DataBlockSize != p.superblock.DataBlockSize {
		return failure.New(failure.Problems, "metadata of image %d: read back as image %d of %d blocks", p.superblock.TransactionID, sb.TransactionID, sb.DataBlocks)
	}
	for _, a := range p.attached {
		if err := a.known(written); err != nil {
			return err
		}
		if err := a.same(written.Mappings(a.Volume.Number)); err != nil {
			return err
		}
	}
	for _, a := range slices.Concat(p.coming, p.foreseen) {
		if err := a.known(written); err != nil {
			return err
		}
		if err := a.begins(written.Mappings(a.Volume.Number)); err != nil {
			return err
		}
	}
	return nil
}

// known compares what the metadata say of a volume besides its mappings.
func (a Attached) known(written *metadata.Reader) error {
	d, err := written.Device(a.Volume.Number)
	if err == nil && (d.Transaction != a.Volume.Generation || d.SnapTime != private || d.MappedBlocks != a.Mapping.Blocks()) {
		err = a.differs()
	}
	return err
}

// begins compares the first of the mappings, which shows that it is this volume's tree
// that the metadata have.
func (a Attached) begins(written iter.Seq2[metadata.Run, error]) error {
	rest := runs(a.Mapping.Runs)
	want, some := rest.next()
	for got, err := range written {
		if err == nil && (!some || got != want) {
			err = a.differs()
		}
		return err
	}
	if some {
		return a.differs()
	}
	return nil
}
