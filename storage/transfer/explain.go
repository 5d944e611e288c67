// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"diskhook/storage/directio"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/qcow2map"
	"diskhook/storage/qemuimg"
)

// explainTimeout bounds the look at sources on storage that may hang.
const explainTimeout = 10 * time.Second

// Explain lists what Copy would do, for dry runs: how it would copy, with the
// command if there is one, then what is done without one. The target need not
// exist. Nothing is changed.
func (e *Engine) Explain(source Source, target Target) []string {
	ctx, cancel := context.WithTimeout(context.Background(), explainTimeout)
	defer cancel()
	lines, err := e.explain(ctx, source, target)
	if err != nil {
		return []string{"# refused: " + failure.Line(err)}
	}
	if rest := target.Size - source.Size; rest > 0 && !target.Zeroed {
		lines = append(lines, fmt.Sprintf("# zero %d bytes at %d of %s", rest, source.Size, target.Path))
	}
	return append(lines, "# flush "+target.Path)
}

func (e *Engine) explain(ctx context.Context, source Source, target Target) ([]string, error) {
	why, err := e.foreign(ctx, source)
	if err != nil {
		return nil, err
	}
	zeros := "zeros are written"
	if target.Zeroed {
		zeros = "zeros are left out"
	}
	if why == "" {
		line := fmt.Sprintf("# copy %s to %s: natively, only what has data; %s", source.Layers[0].Path, target.Path, zeros)
		if c := (&copying{source: source, target: target}); c.unlike() == "" {
			line = fmt.Sprintf("# copy %s to %s: sharing its blocks if the file system can, else natively; %s", source.Layers[0].Path, target.Path, zeros)
		}
		return []string{line}, nil
	}
	line, err := qemuimg.Explain(ctx, convertOptions(Source{Layers: source.Layers, Size: source.Size}, target), target.Block)
	return []string{fmt.Sprintf("# copy %s to %s: by qemu-img, since %s; with a cursor or a template in ranges", source.Layers[0].Path, target.Path, why), line}, err
}

// foreign says why a source has to be read by qemu-img, "" if it need not.
func (e *Engine) foreign(ctx context.Context, source Source) (why string, err error) {
	opened, err := imagecheck.Checker{Allowed: resolve, MaxVirtualSize: 1 << 62}.Open(ctx, source.Layers)
	if err != nil {
		return "", err
	}
	var s session
	defer s.close()
	s.keep(opened.Close)
	err = s.do(ctx, source.Layers[0].Path, IODefault, func() error {
		var files []*directio.File
		for _, f := range opened.Files {
			files = append(files, directio.New(f))
		}
		_, err := safely(func() (*chainMap, error) {
			chain, err := mapChain(source, files, opened.Files)
			if err == nil {
				err = chain.scan(ctx.Err, e.warn)
			}
			return chain, err
		})
		return err
	})
	if errors.Is(err, qcow2map.ErrUnsupported) || errors.Is(err, qcow2map.ErrCorrupt) {
		return err.Error(), nil
	}
	return "", err
}
