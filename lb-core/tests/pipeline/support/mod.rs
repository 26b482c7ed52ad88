//! What the tests of the pipeline and the fuzz targets share: frames, a world to send them
//! through, and the judges of what comes out.

pub(crate) mod datagrams;
pub(crate) mod inputs;
pub(crate) mod model;
pub(crate) mod packet;
pub(crate) mod parsed;
pub(crate) mod run;
pub(crate) mod world;
