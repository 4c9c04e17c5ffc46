//! Running a program on a frame without a network, for tests and benches.

use std::time::Duration;

use aya::programs::{ProgramError, TestRun as _, TestRunOptions, TestRunResult};

use super::xdp::{EARLY, early};
use super::{DataPlane, Error, classifier};

/// The longest frame that a program may make of one.
const LONGEST: usize = 4096;

impl DataPlane {
    /// Runs a program on `frame` through `BPF_PROG_TEST_RUN`: the verdict, and the mean duration of
    /// `repeat` runs. Clones that it makes are really sent.
    #[doc(hidden)]
    pub fn test_run(
        &mut self,
        program: &str,
        frame: &[u8],
        context: Option<&[u8]>,
        repeat: u32,
    ) -> Result<(i32, Duration), Error> {
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.ctx_in = context;
        options.repeat = repeat;
        let result = self.run(program, options)?;
        Ok((result.return_value as i32, result.duration))
    }

    /// The same, once: the verdict, and the frame as the program left it.
    #[doc(hidden)]
    pub fn test_frame(
        &mut self,
        program: &str,
        frame: &[u8],
        context: Option<&[u8]>,
    ) -> Result<(i32, Vec<u8>), Error> {
        let mut left = vec![0; LONGEST];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut left);
        options.ctx_in = context;
        let result = self.run(program, options)?;
        left.truncate(result.data_size_out as usize);
        Ok((result.return_value as i32, left))
    }

    fn run(&mut self, program: &str, options: TestRunOptions<'_>) -> Result<TestRunResult, Error> {
        let failed = |source: ProgramError| Error::Program {
            program: program.to_owned(),
            source: Box::new(source),
        };
        if program == EARLY {
            early(&mut self.ebpf)?.test_run(options).map_err(failed)
        } else {
            let classifier = classifier(&mut self.ebpf, program)?;
            classifier.test_run(options).map_err(failed)
        }
    }
}
