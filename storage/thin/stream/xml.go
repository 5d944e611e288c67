// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"fmt"
	"io"

	"diskhook/storage/thin/metadata"
)

// writeXML writes a pool with this volume alone as thin_dump(8) prints it. Blocks
// of bases have time 0, before the device's snapshot, as in a host's metadata. Who
// the volume is, is in comments around it, which thin_restore skips: a name may
// have "--", which a comment must not, hence the UUID alone.
func (s *Stream) writeXML(w io.Writer) error {
	_, err := fmt.Fprintf(w, "<!-- %s cluster %s volume %s generation %d state %s size %d -->\n",
		magic, s.Cluster, s.Volume, s.Generation, s.State, s.Mapping.Size)
	if err != nil {
		return err
	}
	out, err := metadata.NewXMLWriter(w, metadata.Superblock{
		Time: 1, TransactionID: s.Generation, DataBlockSize: uint32(s.Mapping.BlockSize / 512), DataBlocks: s.DataBlocks,
	})
	if err != nil {
		return err
	}
	err = out.Device(metadata.Device{ID: s.Mapping.Number, MappedBlocks: s.Mapping.Blocks(), Transaction: s.Generation, SnapTime: 1})
	for _, r := range s.Mapping.Runs {
		if err != nil {
			return err
		}
		time := uint32(1)
		if r.Base != 0 {
			time = 0
		}
		err = out.Map(metadata.Run{Origin: r.Virtual, Data: r.Physical, Length: r.Length, Time: time})
	}
	if err == nil {
		err = out.Finish()
	}
	if err == nil {
		e := s.ended()
		_, err = fmt.Fprintf(w, "<!-- end %d %d %s -->\n", e.Runs, e.Blocks, e.CRC)
	}
	return err
}
